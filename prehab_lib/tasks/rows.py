"""Labelled sentences as rows, and rows as batches for one tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """texts: one tuple of strings a column, one or two.  labels: a class or a real value a row."""

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int | float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> "Rows":
        indices = list(indices)
        texts = tuple(tuple(column[i] for i in indices) for column in self.texts)
        return Rows(texts, tuple(self.labels[i] for i in indices))


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
