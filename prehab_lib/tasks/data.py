"""The one door for real data: by hub name, or from a folder that holds such data sets.

`data_root`, or the variable PREHAB_DATA, names the folder that *holds* the data sets; a data set
may also be given as a path itself.  A folder has the hub's Parquet files (`train-*.parquet`, at the
top or under `data/`; C4's scored documents are `heldout*.parquet`) or, for images, folders
(`train/<class>/*.jpg`).
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from prehab_lib.inputs import check_choice
from prehab_lib.save.hub import explained
from prehab_lib.tasks.glue import GLUE, HUB


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


@dataclass(frozen=True)
class Source:
    """A data set as the hub names it and as a folder is named.

    splits, columns: our name -> its name.  config: the part of a hub data set that holds several.
    A data set with a column "image" is one of images.  files: of a hub data set too large to fetch
    whole, its name of a split -> the file to take.
    """

    hub: str | None
    folder: str
    splits: dict[str, str]
    columns: dict[str, str] = field(default_factory=lambda: _same("image", "label"))
    config: str | None = None
    note: str = ""
    files: dict[str, str] = field(default_factory=dict)


def _glue(name: str) -> Source:
    task = GLUE[name]
    columns = _same(*task.columns, "label")
    return Source(HUB, f"glue/{name}", _same(*task.splits), columns, config=name)


def _wikitext(name: str) -> Source:
    splits = _same("train", "validation", "test")
    return Source("Salesforce/wikitext", name, splits, _same("text"), config=name)


def _alpaca(hub: str, name: str) -> Source:
    return Source(hub, name, _same("train"), _same("instruction", "input", "output"))


IMAGES = Source(None, "", _same("train", "test"))  # what a folder of your own is taken for

DATASETS = {
    "cifar10": Source(
        "uoft-cs/cifar10", "cifar10", _same("train", "test"), {"image": "img", "label": "label"}
    ),
    "imagenet-1k": Source(
        "ILSVRC/imagenet-1k",
        "imagenet-1k",
        {"train": "train", "test": "validation"},
        note="gated on the hub, 150 GB",
    ),
    **{f"glue/{name}": _glue(name) for name in GLUE},
    "wikitext-2-raw-v1": _wikitext("wikitext-2-raw-v1"),
    "wikitext-2-v1": _wikitext("wikitext-2-v1"),
    "c4": Source(
        "allenai/c4",
        "c4",
        {"train": "train", "test": "heldout"},
        _same("text"),
        note="one shard of each split",
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "heldout": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    "alpaca": _alpaca("tatsu-lab/alpaca", "alpaca"),
    "alpaca-cleaned": _alpaca("yahma/alpaca-cleaned", "alpaca-cleaned"),
}

# What a notebook wants beyond the embedded data, by profile.
_ALL_GLUE = [f"glue/{name}" for name in GLUE]
NEEDS = {
    "03_vit": {"lab": ["cifar10"], "paper": ["imagenet-1k"]},
    "04_bert_glue": {"lab": _ALL_GLUE, "paper": _ALL_GLUE},
    "05_llama": {
        "lab": ["wikitext-2-raw-v1", "c4", "alpaca"],
        "paper": ["wikitext-2-raw-v1", "c4", "alpaca-cleaned"],
    },
    "07_adaptive_rank": {"lab": ["wikitext-2-raw-v1", "c4"]},
}


def where(name: str, data_root: str | os.PathLike | None = None) -> Path | None:
    """The local folder of a data set, a key of `DATASETS` or a folder itself; None where it would
    come from the hub.

    Raises ValueError for an unknown name, FileNotFoundError for a folder that is missing or empty.
    """
    if name in DATASETS:
        root = data_root or os.environ.get("PREHAB_DATA")
        if not root:
            return None
        holder = Path(root).expanduser()
        if not holder.is_dir():
            raise FileNotFoundError(f"data_root = {str(root)!r} is no folder: check the path")
        folder = holder / DATASETS[name].folder
    elif os.path.isdir(name):
        folder = Path(name)
    else:
        names = ", ".join(("digits", *DATASETS))
        raise ValueError(f"dataset = {name!r} is neither a folder nor one of {names}")
    if not folder.is_dir():
        remedy = "put it there, or leave data_root empty for the hub"
        raise FileNotFoundError(f"the data set {name!r} is not at {folder}: {remedy}")
    if all(entry.name.startswith(".") for entry in folder.iterdir()):
        raise FileNotFoundError(f"the folder {folder} of the data set {name!r} is empty")
    return folder


def load(name: str, part: str, data_root: str | os.PathLike | None = None, like: Source = IMAGES):
    """A `datasets.Dataset` of one part of a data set, with the columns of `like` under our names.

    part: a key of the source's `splits`.  like: what the caller expects, and how a folder of your
    own is read: images and classes by default, a GLUE task's texts and labels with
    DATASETS["glue/cola"].  From `where(name)` if that is a folder, else from the hub.  Raises
    FileNotFoundError, ConnectionError (no network), PermissionError (gated) or ValueError, each one
    sentence with the remedy.
    """
    import datasets

    source = DATASETS.get(name) or replace(like, hub=None, folder=name)
    if set(source.columns) != set(like.columns):
        here, wanted = ", ".join(source.columns), ", ".join(like.columns)
        raise ValueError(f"data set {name!r} holds {here}: what is wanted here is {wanted}")
    check_choice("part", part, source.splits)
    split, folder = source.splits[part], where(name, data_root)
    datasets.disable_progress_bars()
    remedy = f"set data_root (or PREHAB_DATA) to a folder that holds {source.folder}"
    if folder is not None:
        loaded = _load_folder(folder, split, images="image" in source.columns)
    else:
        options = {}
        if source.files:  # one file of many: not the number of rows the hub expects
            options["data_files"] = {split: source.files[split]}
            options["verification_mode"] = "no_checks"
        with explained(f"the data set {source.hub!r}", remedy):
            loaded = datasets.load_dataset(source.hub, source.config, split=split, **options)
    return _named_columns(loaded, source, name)


def _load_folder(folder: Path, split: str, images: bool):
    import datasets

    remedy = "check its files, or put a fresh copy there"
    places = (folder, folder / "data")
    files = sorted(str(file) for place in places for file in place.glob(f"{split}*.parquet"))
    if files:
        with explained(f"the data in {folder}", remedy):
            return datasets.load_dataset("parquet", data_files={split: files}, split=split)
    if images and (folder / split).is_dir() and any((folder / split).iterdir()):
        with explained(f"the images in {folder / split}", remedy):
            return datasets.load_dataset("imagefolder", data_dir=str(folder / split), split="train")
    needed = f"{split}*.parquet files" + (f" or a folder {split}/<class>/" if images else "")
    raise FileNotFoundError(f"{folder} has no part {split!r}: it needs {needed}")


def _named_columns(loaded, source: Source, name: str):
    import datasets

    for ours, theirs in source.columns.items():
        if theirs in loaded.column_names:
            loaded = loaded.rename_column(theirs, ours) if theirs != ours else loaded
        elif ours not in loaded.column_names:
            present = ", ".join(loaded.column_names)
            raise ValueError(f"data set {name!r} has no column {theirs!r}: it has {present}")
    loaded = loaded.select_columns(list(source.columns))
    if "image" not in source.columns:
        return loaded
    with explained(f"the columns of data set {name!r}", "they must hold images and class labels"):
        loaded = loaded.cast_column("image", datasets.Image())
        typed = isinstance(loaded.features["label"], datasets.ClassLabel)
        return loaded if typed else loaded.class_encode_column("label")
