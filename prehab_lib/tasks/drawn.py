"""Batches drawn from a seed, so that compared arms see the same ones; sentences as rows of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, RandomSampler


class Task:
    """Batches by the task's `draw(purpose, seed, count)`, none that is scored."""

    def train(self, seed: int, count: int) -> Iterable:
        return self.draw("train", 1000 + seed, count)

    def calibration(self, seed: int, count: int) -> Iterable:
        return self.draw("calibration", 2000 + seed, count)

    def validation(self, seed: int, count: int) -> Iterable:
        return self.draw("validation", 3000 + seed, count)


@dataclass(frozen=True)
class Drawn:
    """`count` batches, each `make(numbers)` of `size` row numbers, as `drawn_rows` draws them."""

    make: Callable
    rows: int
    size: int
    seed: int
    count: int
    replacement: bool = False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        order = drawn_rows(self.rows, self.count * self.size, self.seed, self.replacement)
        return map(self.make, BatchSampler(order, self.size, drop_last=False))


def drawn_rows(rows: int, wanted: int, seed: int, replacement: bool) -> Iterable[int]:
    """`wanted` numbers below `rows`: each for itself, or out of one shuffled pass after another."""
    if wanted == 0:  # a RandomSampler refuses it
        return ()
    return RandomSampler(range(rows), replacement, wanted, torch.Generator().manual_seed(seed))


def shuffled_rows(rows: int) -> list[int]:
    """The numbers below `rows` in an order that is always the same."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(0)).tolist()


@dataclass(frozen=True)
class Rows:
    texts: tuple[tuple[str, ...], ...]  # by column, one or two
    labels: tuple[int | float, ...]  # a class or a real value a row

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> "Rows":
        indices = list(indices)
        texts = tuple(tuple(column[i] for i in indices) for column in self.texts)
        return Rows(texts, tuple(self.labels[i] for i in indices))


def encode(rows: Rows, tokenizer, max_length: int, indices: Iterable[int]) -> dict[str, Tensor]:
    """Rows as one batch: input_ids, attention_mask (B, T), any token_type_ids, labels (B,)."""
    some = rows.take(indices)
    options = dict(truncation=True, max_length=max_length, padding=True, return_tensors="pt")
    batch = dict(tokenizer(*map(list, some.texts), **options))
    whole = all(isinstance(label, int) for label in some.labels)
    labels = torch.tensor(some.labels, dtype=torch.int64 if whole else torch.float32)
    return batch | {"labels": labels}
