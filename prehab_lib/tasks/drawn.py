"""Batches drawn from a seed: the same ones at every pass, so compared arms see the same data."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import BatchSampler, RandomSampler


class Task:
    """Batches for three purposes, by the task's `draw(purpose, seed, count)`, none that is scored.

    validation is for choices: held-out embedded data, or other draws of a data set's training part.
    """

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
