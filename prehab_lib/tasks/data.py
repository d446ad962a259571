"""The one door for real data: by hub name, or from a folder that holds such data sets.

`data_root`, or the variable PREHAB_DATA, names the folder that *holds* the data sets; a data set
may also be given as a path itself.  A folder has the hub's Parquet files (`train-*.parquet`, at the
top or under `data/`; C4's scored documents are `heldout*.parquet`) or, for images, folders
(`train/<class>/*.jpg`).
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from prehab_lib.save.hub import explained
from prehab_lib.tasks.glue import GLUE, HUB

_IMAGE = {"image": "image", "label": "label"}
_TEXT = {"text": "text"}
_INSTRUCTION = {"instruction": "instruction", "input": "input", "output": "output"}
_THREE_PARTS = {"train": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Source:
    """A data set as the hub names it and as a folder is named; columns and splits as the hub spells
    them.

    config: the part of a hub data set that holds several.  A data set with a column "image" is one
    of images. files: of a hub data set too large to fetch whole, the file to take for a split.
    """

    hub: str | None
    folder: str
    splits: dict[str, str]  # our name -> its name
    columns: dict[str, str] = field(default_factory=_IMAGE.copy)  # our name -> its name
    config: str | None = None
    note: str = ""
    files: dict[str, str] = field(
        default_factory=dict
    )  # its name of a split -> a file of the hub's repository


IMAGES = Source(
    None, "", {"train": "train", "test": "test"}
)  # what a folder of your own is taken for

DATASETS = {
    "cifar10": Source(
        "uoft-cs/cifar10",
        "cifar10",
        {"train": "train", "test": "test"},
        columns=_IMAGE | {"image": "img"},
    ),
    "imagenet-1k": Source(
        "ILSVRC/imagenet-1k",
        "imagenet-1k",
        {"train": "train", "test": "validation"},
        note="gated on the hub, 150 GB",
    ),
    "imagenet-sample": Source(
        None,
        "imagenet-sample",
        {"train": "validation", "test": "validation"},
        note="200 images: a check, not a score",
    ),
} | {
    f"glue/{name}": Source(
        HUB,
        f"glue/{name}",
        {split: split for split in task.splits},
        columns={column: column for column in (*task.columns, "label")},
        config=name,
    )
    for name, task in GLUE.items()
}
DATASETS |= {
    name: Source("Salesforce/wikitext", name, _THREE_PARTS, _TEXT, config=name)
    for name in ("wikitext-2-raw-v1", "wikitext-2-v1")
}
DATASETS |= {
    "c4": Source(
        "allenai/c4",
        "c4",
        {"train": "train", "test": "heldout"},
        _TEXT,
        note="one shard of each split",
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "heldout": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    "alpaca": Source("tatsu-lab/alpaca", "alpaca", {"train": "train"}, _INSTRUCTION),
    "alpaca-cleaned": Source(
        "yahma/alpaca-cleaned", "alpaca-cleaned", {"train": "train"}, _INSTRUCTION
    ),
}

# What a notebook wants beyond the embedded data, by profile.
NEEDS = {
    "00_start_here": {},
    "01_surrogates": {},
    "02_rulers": {},
    "03_vit": {"lab": ["cifar10"], "paper": ["imagenet-1k"]},
    "04_bert_glue": {
        "lab": [f"glue/{name}" for name in GLUE],
        "paper": [f"glue/{name}" for name in GLUE],
    },
    "05_llama": {
        "lab": ["wikitext-2-raw-v1", "c4", "alpaca"],
        "paper": ["wikitext-2-raw-v1", "c4", "alpaca-cleaned"],
    },
    "06_ablations": {},
    "07_adaptive_rank": {"lab": ["wikitext-2-raw-v1", "c4"]},
    "08_cost": {},
    "10_audit": {},
}


def root(data_root: str | os.PathLike | None = None) -> Path | None:
    """The folder that holds data sets: the argument, else PREHAB_DATA, else None.  Raises
    FileNotFoundError if absent.
    """
    given = data_root or os.environ.get("PREHAB_DATA") or None
    if given is None:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data_root = {str(given)!r} is no folder: give the folder that holds your data sets"
        )
    return folder


def where(name: str, data_root: str | os.PathLike | None = None) -> Path | None:
    """The local folder of a data set, or None where it would come from the hub.

    name: a key of `DATASETS`, or a folder.  Raises ValueError for an unknown name,
    FileNotFoundError for a folder that is missing or empty.
    """
    if name in DATASETS:
        holder = root(data_root)
        if holder is None:
            return None
        return _filled(holder / DATASETS[name].folder, name)
    if os.path.isdir(name):
        return _filled(Path(name), name)
    raise ValueError(
        f"dataset = {name!r} is neither a folder nor one of {', '.join(DATASETS)} (nor 'digits', which is embedded)"
    )


def load(name: str, part: str, data_root: str | os.PathLike | None = None, like: Source = IMAGES):
    """A `datasets.Dataset` of one part of a data set, with the columns of `like` under our names.

    part: a key of the source's `splits`.  like: what the caller expects, and how a folder of your
    own is read: images and classes by default, a GLUE task's texts and labels with
    DATASETS["glue/cola"].
    From `where(name)` if that is a folder, else from the hub.  Raises FileNotFoundError,
    ConnectionError (no network), PermissionError (gated) or ValueError, each one sentence with the
    remedy.
    """
    import datasets

    source = DATASETS.get(name) or replace(like, hub=None, folder=name)
    if set(source.columns) != set(like.columns):
        raise ValueError(
            f"data set {name!r} holds {', '.join(source.columns)}: what is wanted here is {', '.join(like.columns)}"
        )
    if part not in source.splits:
        raise ValueError(f"part = {part!r} is not known: choose one of {', '.join(source.splits)}")
    split, folder = source.splits[part], where(name, data_root)
    datasets.disable_progress_bars()
    remedy = "set data_root (or PREHAB_DATA) to a folder that holds " + source.folder
    if folder is not None:
        loaded = _load_folder(folder, split, images="image" in source.columns)
    elif source.hub is None:
        raise FileNotFoundError(f"the data set {name!r} is on no hub: {remedy}")
    else:
        with explained(f"the data set {source.hub!r}", remedy):
            some = {}
            if source.files:  # one file of many: not the number of rows the hub expects
                some = dict(data_files={split: source.files[split]}, verification_mode="no_checks")
            loaded = datasets.load_dataset(source.hub, source.config, split=split, **some)
    return _named_columns(loaded, source, name)


def _load_folder(folder: Path, split: str, images: bool):
    import datasets

    remedy = "check its files, or put a fresh copy there"
    files = sorted(
        str(f) for place in (folder, folder / "data") for f in place.glob(f"{split}*.parquet")
    )
    if files:
        with explained(f"the data in {folder}", remedy):
            return datasets.load_dataset("parquet", data_files={split: files}, split=split)
    if images and (folder / split).is_dir() and any((folder / split).iterdir()):
        with explained(f"the images in {folder / split}", remedy):
            return datasets.load_dataset("imagefolder", data_dir=str(folder / split), split="train")
    or_folders = f" or a folder {split}/<class>/" if images else ""
    raise FileNotFoundError(
        f"{folder} has no part {split!r}: it needs {split}*.parquet files{or_folders}"
    )


def _named_columns(loaded, source: Source, name: str):
    import datasets

    for ours, theirs in source.columns.items():
        found = theirs if theirs in loaded.column_names else ours
        if found not in loaded.column_names:
            raise ValueError(
                f"data set {name!r} has no column {theirs!r}: it has {', '.join(loaded.column_names)}"
            )
        if found != ours:
            loaded = loaded.rename_column(found, ours)
    loaded = loaded.select_columns(list(source.columns))
    if "image" not in source.columns:
        return loaded
    with explained(f"the columns of data set {name!r}", "they must hold images and class labels"):
        loaded = loaded.cast_column("image", datasets.Image())
        typed = isinstance(loaded.features["label"], datasets.ClassLabel)
        return loaded if typed else loaded.class_encode_column("label")


def _filled(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the data set {name!r} is not at {folder}: put it there, or leave data_root empty for the hub"
        )
    if not any(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
        raise FileNotFoundError(f"the folder {folder} of the data set {name!r} is empty")
    return folder
