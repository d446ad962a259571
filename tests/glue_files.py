"""Small GLUE tasks on disk, in the hub's layout."""

from collections.abc import Callable
from pathlib import Path

import datasets

from prehab_lib.tasks.glue import GLUE

WORDS = "the cat sat on a mat while one dog ran after two birds in our garden".split()  # noqa: SIM905
ROWS = {"train": 20}  # other splits have 12


def sentence(i: int) -> str:
    """Row i's text: three to nine words; a row with the word "garden" is of class 1."""
    words = [WORDS[(5 * i + k) % (len(WORDS) - 1)] for k in range(3 + i % 6)]
    return " ".join([*words, "garden"] if i % 2 else words)


def glue_folder(root: Path, name: str, label: Callable | None = None, text: Callable = sentence, columns=None) -> Path:
    """Write root/glue/<name>/<split>.parquet for every split of the task; the task's folder.

    label: fn(split, row), text: fn(row); columns: other names of the text columns.
    """
    task, folder = GLUE[name], root / "glue" / name
    folder.mkdir(parents=True, exist_ok=True)
    if label is None:
        label = (lambda split, i: i % len(task.labels)) if task.labels else (lambda split, i: (i % 6) / 2)
    kind = "int64" if task.labels or isinstance(label("train", 0), int) else "float32"
    for split in task.splits:
        first = 0 if split == "train" else 100
        indices = range(first, first + ROWS.get(split, 12))
        rows = {column: [text(i) for i in indices] for column in columns or task.columns}
        features = dict.fromkeys(rows, datasets.Value("string")) | {"label": datasets.Value(kind)}
        rows["label"] = [label(split, i) for i in indices]
        written = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        written.to_parquet(folder / f"{split}.parquet")
    return folder
