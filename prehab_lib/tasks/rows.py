"""Labelled sentences as rows, and rows as batches for one tokenizer."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prehab_lib.tasks.drawn import Drawn


@dataclass(frozen=True)
class Rows:
    """texts: one tuple of strings a column (one column, or two for pairs).  labels: a class or a
    real value a row.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int | float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> "Rows":
        indices = list(indices)
        texts = tuple(tuple(column[i] for i in indices) for column in self.texts)
        return Rows(texts, tuple(self.labels[i] for i in indices))

    @cached_property
    def checksum(self) -> str:
        """Sixteen hexadecimal digits of all texts and labels."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for column in self.texts:
            digest.update("\0".join(column).encode())
        return digest.hexdigest()[:16]


def check_rows(rows: Rows, name: str, classes: int) -> None:
    """Raises ValueError naming what no model can be trained or scored on: no rows, a row without
    text, a bad label.

    classes: number of classes, 0 for a regression.
    """
    if not len(rows):
        raise ValueError(f"{name} has no rows: check its files")
    if any(not isinstance(text, str) for column in rows.texts for text in column):
        raise ValueError(f"{name} has a row without text: every row must hold text")
    hidden = rows.labels.count(-1)
    if hidden == len(rows) or (classes and hidden):  # a regression may have a -1
        raise ValueError(f"{name} has labels of -1, which hide the answers: score another split")
    for label in rows.labels:
        if classes:
            good = isinstance(label, int) and 0 <= label < classes
            wanted = f"classes 0 to {classes - 1}"
        else:
            good = isinstance(label, int | float) and math.isfinite(label)
            wanted = "a finite number a row"
        if not good:
            raise ValueError(f"{name} has the label {label!r}: its task wants {wanted}")


def drawn_rows_of(
    rows: Rows, tokenizer, batch: int, max_length: int, seed: int, count: int
) -> Drawn:
    """`count` full batches, as `encode` makes them, out of one shuffled pass after another."""
    return Drawn(
        lambda indices: encode(rows, tokenizer, max_length, indices), len(rows), batch, seed, count
    )


def every_row(rows: Rows, tokenizer, batch: int, max_length: int) -> Iterator[dict[str, Tensor]]:
    """Every row once, as `encode` makes them, shortest first, so that little is padded."""
    lengths = [sum(map(len, texts)) for texts in zip(*rows.texts, strict=True)]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    for start in range(0, len(order), batch):
        yield encode(rows, tokenizer, max_length, order[start : start + batch])


def encode(rows: Rows, tokenizer, max_length: int, indices: list[int]) -> dict[str, Tensor]:
    """Some rows as one batch, keyword arguments to `forward`: input_ids and attention_mask (B, T),
    token_type_ids where the tokenizer gives them, labels (B,) (int64, or float32 for a regression).

    T is the longest of the batch, at most `max_length` tokens; the rest is cut off.
    """
    columns = [[column[i] for i in indices] for column in rows.texts]
    options = dict(truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    batch = dict(tokenizer(*columns, **options))
    labels = [rows.labels[i] for i in indices]
    whole = all(isinstance(label, int) for label in labels)
    return batch | {"labels": torch.tensor(labels, dtype=torch.int64 if whole else torch.float32)}


def count_longer(rows: Rows, tokenizer, max_length: int) -> int:
    """Rows of more than `max_length` tokens, special tokens included."""
    columns = [list(column) for column in rows.texts]
    return sum(len(ids) > max_length for ids in tokenizer(*columns, verbose=False)["input_ids"])
