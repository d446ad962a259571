"""Embedded images: pairs of scikit-learn's handwritten digits, 100 classes, no download.

A single digit is too easy to show what compression costs; a pair "37" is a class of its own, and 8
× 16 pixels are still small enough for two CPU cores.  Images are split into train, validation and
test *before* they are paired.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

PARTS = {"train": (0, 1000), "validation": (1000, 1297), "test": (1297, 1797)}
SPLIT_SEED = 0  # the split belongs to the data set, not to the experiment


@dataclass(frozen=True)
class DigitPairs:
    """`count` batches of (images (batch, 1, 8, 16) in [0, 1], labels (batch,) in 0…99); the same
    ones at every pass.
    """

    part: str
    batch: int
    count: int
    seed: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images, digits = _part(self.part)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            left, right = torch.randint(len(images), (2, self.batch), generator=generator)
            yield torch.cat([images[left], images[right]], dim=3), 10 * digits[left] + digits[right]

    def __len__(self) -> int:
        return self.count


@cache
def _part(part: str) -> tuple[Tensor, Tensor]:
    """images (k, 1, 8, 8) in [0, 1] and digits (k,) of one part.  Raises ValueError for an unknown
    part.
    """
    from sklearn.datasets import load_digits

    if part not in PARTS:
        raise ValueError(f"part = {part!r} is not known: choose one of {', '.join(PARTS)}")
    images, digits = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    mine = order[slice(*PARTS[part])]
    return torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)[mine], torch.tensor(
        digits
    )[mine]
