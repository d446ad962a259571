"""Prehab's rank term by the fast surrogates: layers of one shape together, and a tangent that may
serve several steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from prehab_lib.fast.tangents import FAST, Tangent
from prehab_lib.inputs import check_whole
from prehab_lib.precision import is_sharded, whole
from prehab_lib.rank_term import RankTerm
from prehab_lib.roots import checked_gram
from prehab_lib.surrogates import SURROGATES

# Bytes of weights and metrics in one stack: beyond it a stack is no faster than its layers.
STACK = 16 * 2**20


@dataclass(frozen=True)
class Fast:
    """A surrogate of `FAST` for `prehab(surrogate=Fast("nuclear", refresh=8))`, in float32.

    refresh: steps that share one tangent of R; the gradient of "nuclear_ratio" turns fastest
    (notebook 08).  Raises ValueError for a name without a fast form.
    """

    name: str
    refresh: int = 1

    def __post_init__(self):
        if self.name not in FAST:
            raise ValueError(
                f"surrogate {self.name!r} has no fast form, only {', '.join(FAST)} have: pass the "
                "name alone"
            )
        check_whole(1, refresh=self.refresh)

    def term(self, *settings) -> "FastTerm":
        return FastTerm(self, *settings)


class FastTerm(RankTerm):
    """R of all layers by a class of `FAST`, renewed every `every` steps.

    Between two renewals R is its tangent there, c + ⟨D, W⟩ with the gradient D: no product at all.
    Then one D (m, n) of every layer stays in memory, where the roots are; with every=1 one stack of
    layers has its D at a time.
    """

    usual_dtype: ClassVar[str] = "float32"

    def __init__(self, fast: Fast, *settings):
        self.kind, self.every = FAST[fast.name], fast.refresh
        self.held: dict[int, tuple[Tensor, Tensor]] = {}  # stack -> c (b,), D (b, m, n)
        super().__init__(SURROGATES[fast.name], *settings)

    def made_metrics(self) -> dict[str, Tensor]:
        """layer -> L, or G = L Lᵀ for the surrogate that needs no root."""
        return self.once_per_gram(self._gram) if self.kind.metric_is == "gram" else self.roots

    def _gram(self, name: str) -> Tensor:
        if self.floor:
            L = self.stats[name].gram_root(self.floor)
            return L @ L.T
        return checked_gram(self.stats[name].gram)

    @cached_property
    def stacks(self) -> list[tuple[list[str], Callable[[Tensor], Tangent]]]:
        """Names of layers of one shape and device, as many as `STACK` allows, and the surrogate
        that keeps what it knows of them.
        """
        alike: dict[tuple, list[str]] = {}
        for name, layer in self.layers.items():
            alike.setdefault((layer.weight.shape, layer.weight.device), []).append(name)
        stacks = []
        for names in alike.values():
            metric = self.metrics[names[0]]
            numbers = metric.numel() + self.layers[names[0]].weight.numel()
            size = max(1, STACK // (metric.element_size() * numbers))
            for first in range(0, len(names), size):
                part = names[first : first + size]
                metrics = [self.metrics[name] for name in part]
                stacked = torch.stack(metrics) if len(part) > 1 else metrics[0][None]  # no copy
                stacks.append((part, self.kind(stacked)))
        return stacks

    def refresh(self, step: int) -> None:
        self.notes = {"fell_back": 0}
        if step % self.every == 0:
            self.held.clear()  # each stack makes its tangent anew where it is next asked for one

    def values(self) -> Iterator[Tensor]:
        for weight, c, D in self._tangents():
            yield _value(weight, c, D)

    def pulls(self, lam: float) -> Iterator[Tensor]:
        for weight, c, D in self._tangents():
            yield _pull(weight, c, D, strength=lam * self.share)

    def _tangents(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """weight, c and D of every layer, stack after stack."""
        for i, (names, surrogate) in enumerate(self.stacks):
            weights = [self.layers[name].weight for name in names]
            if i in self.held:
                c, D = self.held[i]
            else:
                c, D = self._tangent(weights, surrogate)
                if self.every > 1:
                    self.held[i] = c, D.cpu() if self.memory.roots_on == "cpu" else D
            yield from zip(weights, c, D, strict=True)

    @torch.no_grad()
    def _tangent(self, weights: list[Tensor], surrogate: Callable) -> tuple[Tensor, Tensor]:
        """c (b,) and D (b, m, n) of one stack, at the weights as they are."""
        W = torch.stack([whole(weight).to(self.dtype_on(weight.device)) for weight in weights])
        value, D, fell_back = surrogate(W)
        self.notes["fell_back"] += int(fell_back.sum())
        return value - (D * W).sum((-2, -1)), D


def _value(weight: Tensor, c: Tensor, D: Tensor) -> Tensor:
    """c + ⟨D, W⟩, with the graph of W."""
    W = whole(weight)
    return c + (D.to(W) * W).sum()


def _pull(weight: Tensor, c: Tensor, D: Tensor, strength: float) -> Tensor:
    """c + ⟨D, W⟩ without a graph; its gradient times `strength` is added to the weight's."""
    if is_sharded(weight):
        value = _value(weight, c, D)
        (strength * value).backward()
        return value.detach()
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.add_(D.to(weight.grad), alpha=strength)
    return _value(weight.detach(), c, D)
