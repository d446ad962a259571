"""Early stopping: the weights of the best validation."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Best:
    """Keeps a copy of some parameters as they were at the lowest value offered so far.

    value: that value, infinite before the first.  since: offers in a row that were not lower.
    Memory: one copy.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self.value, self.since = float("inf"), 0
        self.kept: list[Tensor] | None = None

    def offer(self, value: float) -> bool:
        """Keep the parameters as they are if `value` is lower than every one before; whether it
        was.
        """
        if value < self.value:
            self.value, self.since = value, 0
            self.kept = [parameter.detach().clone() for parameter in self.parameters]
            return True
        self.since += 1
        return False

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back; nothing where none was ever kept."""
        for parameter, value in zip(self.parameters, self.kept or [], strict=False):
            parameter.copy_(value)
