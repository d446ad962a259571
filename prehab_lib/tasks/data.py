"""The one door for real data: by hub name, or from a folder that holds such data sets.

`data_root`, or the variable PREHAB_DATA, names the folder that *holds* the data sets, each in a
folder of its name.  A data set may also be a path itself.  Such a folder has the hub's Parquet
files (`train-*.parquet`, at the top or under `data/`) or, for images, `train/<class>/*.jpg`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from prehab_lib.inputs import check_choice
from prehab_lib.save.hub import explained, optional
from prehab_lib.tasks.glue import GLUE, HUB


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


@dataclass(frozen=True)
class Source:
    """A data set as the hub names it.  splits, columns: our name -> its name."""

    hub: str | None
    splits: dict[str, str]
    columns: dict[str, str]
    config: str | None = None
    note: str = ""
    files: dict[str, str] = field(default_factory=dict)  # its split -> the one file to fetch


_IMAGES, _SPLITS, _TEXT = _same("image", "label"), _same("train", "test"), _same("text")
_VALIDATED, _HELD_OUT = ({"train": "train", "test": name} for name in ("validation", "heldout"))
_WIKITEXT = ("Salesforce/wikitext", _same("train", "validation", "test"), _TEXT)
_ALPACA = (_same("train"), _same("instruction", "input", "output"))
_GATED = "gated on the hub, 150 GB"
_C4 = {"train": "en/c4-train.00000-of-01024.json.gz"}
_C4["heldout"] = "en/c4-validation.00000-of-00008.json.gz"
MOST = 50_000  # classes
FOLDER = Source(None, _SPLITS, _IMAGES)  # what a folder of your own is taken for

DATASETS = {
    "cifar10": Source("uoft-cs/cifar10", _SPLITS, {"image": "img", "label": "label"}),
    "imagenet-1k": Source("ILSVRC/imagenet-1k", _VALIDATED, _IMAGES, note=_GATED),
    "wikitext-2-raw-v1": Source(*_WIKITEXT, config="wikitext-2-raw-v1"),
    "wikitext-2-v1": Source(*_WIKITEXT, config="wikitext-2-v1"),
    "c4": Source("allenai/c4", _HELD_OUT, _TEXT, note="one shard of each split", files=_C4),
    "alpaca": Source("tatsu-lab/alpaca", *_ALPACA),
    "alpaca-cleaned": Source("yahma/alpaca-cleaned", *_ALPACA),
}
for _name, _task in GLUE.items():
    _columns = _same(*_task.columns, "label")
    DATASETS[f"glue/{_name}"] = Source(HUB, _same(*_task.splits), _columns, config=_name)


def where(name: str, data_root: str | os.PathLike | None = None) -> Path | None:
    """The folder of a data set; None: it is on the hub.  Raises FileNotFoundError or ValueError."""
    if name not in DATASETS:
        if not os.path.isdir(os.path.expanduser(name)):  # a loop of links, or a name too long: none
            names = ", ".join(("digits", *DATASETS))
            raise ValueError(f"dataset = {name!r} is neither a folder nor one of {names}")
        return Path(name).expanduser()
    root = data_root or os.environ.get("PREHAB_DATA")
    if not root:
        return None
    home = Path(root).expanduser()
    if not os.path.isdir(home):
        raise FileNotFoundError(f"data_root = {str(root)!r} is no folder: check the path")
    folder = home / name
    if not os.path.isdir(folder):
        remedy = "put it there, or leave data_root empty for the hub"
        raise FileNotFoundError(f"the data set {name!r} is not at {folder}: {remedy}")
    return folder


def load(name: str, part: str, data_root: str | os.PathLike | None = None, like: Source = FOLDER):
    """A `datasets.Dataset` of one part of a data set, with the columns of `like` under our names.

    part: a key of `splits`.  like: what the caller expects, and how a folder of your own is read.
    Raises as `where` and `hub.explained` do, and ValueError for another kind of data set.
    """
    datasets = optional("datasets")
    source = DATASETS.get(name, like)
    if set(source.columns) != set(like.columns):
        here, wanted = ", ".join(source.columns), ", ".join(like.columns)
        raise ValueError(f"data set {name!r} holds {here}: what is wanted here is {wanted}")
    check_choice("part", part, source.splits)
    split, folder = source.splits[part], where(name, data_root)
    datasets.disable_progress_bars()
    if folder is not None:
        return _named_columns(_load_folder(folder, split, "image" in like.columns), source, name)
    options = {}
    if source.files:  # not the number of rows the hub expects
        options["data_files"] = {split: source.files[split]}
        options["verification_mode"] = "no_checks"
    remedy = f"set data_root (or PREHAB_DATA) to a folder that holds {name}"
    with explained(f"the data set {source.hub!r}", remedy):
        loaded = datasets.load_dataset(source.hub, source.config, split=split, **options)
    return _named_columns(loaded, source, name)


def _load_folder(folder: Path, split: str, images: bool):
    datasets, remedy = optional("datasets"), "check its files, or put a fresh copy there"
    files = [*folder.glob(f"{split}*.parquet"), *folder.glob(f"data/{split}*.parquet")]
    files = sorted(map(str, files))
    if files:
        with explained(f"the data in {folder}", remedy):
            return datasets.load_dataset("parquet", data_files={split: files}, split=split)
    if images and os.path.isdir(folder / split) and any((folder / split).iterdir()):
        with explained(f"the images in {folder / split}", remedy):
            where_from = dict(data_dir=str(folder / split), split="train")
            found = datasets.load_dataset("imagefolder", **where_from)
            names = found.features["label"].names  # as text: "10" does not follow "1"
            return _with_labels(found, [names[i] for i in found["label"]])
    needed = f"{split}*.parquet files" + (f" or a folder {split}/<class>/" if images else "")
    raise FileNotFoundError(f"{folder} has no part {split!r}: it needs {needed}")


def _named_columns(loaded, source: Source, name: str):
    present = loaded.column_names
    for ours, theirs in source.columns.items():
        if not {ours, theirs} & {*present}:
            has = ", ".join(present)
            raise ValueError(f"data set {name!r} has no column {theirs!r}: it has {has}")
        if ours not in present:
            loaded = loaded.rename_column(theirs, ours)
    loaded = loaded.select_columns(list(source.columns))
    if "image" not in source.columns:
        return loaded
    with explained(f"the columns of data set {name!r}", "they must hold images and class labels"):
        return _labelled(loaded.cast_column("image", optional("datasets").Image()))


def _labelled(loaded):
    """The labels as classes: a number stays that number, words are numbered by the alphabet."""
    datasets, compute = optional("datasets"), optional("pyarrow.compute")
    column, feature = loaded.data.column("label"), loaded.features["label"]
    if column.null_count:
        raise ValueError(f"{column.null_count} rows have no label")
    if not isinstance(feature, datasets.ClassLabel):
        values = column.to_pylist()
        names = sorted(set(values))
        if isinstance(values[0], str) and not all(map(_is_number, names)):
            labels = [*map({name: i for i, name in enumerate(names)}.get, values)]
        else:
            labels = compute.cast(column, "int64").to_pylist()  # of 2.5 or NaN: an error
            names = [str(i) for i in range(min(max(labels), MOST) + 1)]
        loaded = _with_labels(loaded, labels, datasets.ClassLabel(names=names))
    least, highest = compute.min_max(loaded.data.column("label")).as_py().values()
    classes = loaded.features["label"].num_classes
    if least < 0 or highest >= classes:
        raise ValueError(f"labels go from {least} to {highest}, of {classes} classes")
    return loaded


def _is_number(name: str) -> bool:
    """Written as a program writes it: "07" beside "7" would be one class twice."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def _with_labels(loaded, labels: list, feature=None):
    return loaded.remove_columns("label").add_column("label", labels, feature=feature)
