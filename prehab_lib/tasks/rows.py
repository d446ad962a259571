"""Labelled sentences as rows, and rows as batches for one tokenizer."""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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
        return hashlib.sha256(repr((self.texts, self.labels)).encode()).hexdigest()[:16]


def check_rows(rows: Rows, name: str, classes: int) -> None:
    """Raises ValueError naming what no model can be trained or scored on: no rows, a row without
    text, a bad label.  classes: how many there are, 0 for a regression.
    """
    if not len(rows):
        raise ValueError(f"{name} has no rows: check its files")
    if any(not isinstance(text, str) for column in rows.texts for text in column):
        raise ValueError(f"{name} has a row without text: every row must hold text")
    hidden = rows.labels.count(-1)
    if hidden == len(rows) or (classes and hidden):  # a regression may have a -1
        raise ValueError(f"{name} has labels of -1, which hide the answers: score another split")
    wanted = f"classes 0 to {classes - 1}" if classes else "a finite number a row"
    for label in rows.labels:
        good = isinstance(label, int | float) and math.isfinite(label)
        if classes:
            good = isinstance(label, int) and 0 <= label < classes
        if not good:
            raise ValueError(f"{name} has the label {label!r}: its task wants {wanted}")


def encode(rows: Rows, tokenizer, max_length: int, indices: Iterable[int]) -> dict[str, Tensor]:
    """Some rows as one batch, keyword arguments to `forward`: input_ids and attention_mask (B, T),
    token_type_ids where the tokenizer gives them, labels (B,) (int64, or float32 for a regression).

    T is the longest of the batch, at most `max_length` tokens; the rest is cut off.
    """
    some = rows.take(indices)
    options = dict(truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    batch = dict(tokenizer(*map(list, some.texts), **options))
    whole = all(isinstance(label, int) for label in some.labels)
    labels = torch.tensor(some.labels, dtype=torch.int64 if whole else torch.float32)
    return batch | {"labels": labels}
