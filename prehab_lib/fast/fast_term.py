"""Prehab's rank term by fast surrogates: layers of one shape have their tangents made together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from prehab_lib.fast.tangents import FAST, Tangent
from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.precision import whole
from prehab_lib.rank_term import RankTerm
from prehab_lib.roots import checked_gram, exactly
from prehab_lib.surrogates import SURROGATES

# Bytes of weights and metrics in one stack: beyond it a stack is no faster than its layers.
STACK = 16 * 2**20


@dataclass(frozen=True)
class Fast:
    """A surrogate of `FAST` for `prehab(surrogate=Fast("nuclear", refresh=8))`, in float32."""

    name: str
    refresh: int = 1  # steps that share one tangent of R

    def __post_init__(self):
        check_choice("fast surrogate", self.name, FAST)
        check_whole(1, refresh=self.refresh)

    @classmethod
    def held(cls, name: str, refresh: int) -> "Fast":
        """As Fast(name, refresh), but fresh at each step where the gradient turns fast: Eq. (5)."""
        return cls(name, 1 if name == "nuclear_ratio" else refresh)

    def term(self, *settings) -> "FastTerm":
        return FastTerm(self, *settings)


class FastTerm(RankTerm):
    """R of all layers as its tangent c + ⟨D, W⟩, renewed every `every` steps; D is the gradient."""

    usual_dtype = "float32"

    def __init__(self, fast: Fast, *settings):
        self.kind, self.every = FAST[fast.name], fast.refresh
        # By stack, c (b,) and D (b, m, n); none with every=1: one stack has its D at a time.
        self.held: dict[int, tuple[Tensor, Tensor]] = {}
        self.fell_back: dict[int, int] = {}  # by stack, of the tangents that this step made
        super().__init__(SURROGATES[fast.name], *settings)

    def made_metrics(self) -> dict[str, Tensor]:
        """layer -> L, or G = L Lᵀ for the surrogate that needs no root."""
        return self.once_per_gram(self._gram) if self.kind.metric_is == "gram" else self.roots

    def _gram(self, name: str) -> Tensor:
        if not self.floor:
            return checked_gram(self.stats[name].gram)
        L = self.stats[name].gram_root(self.floor)
        return L @ L.T

    @cached_property
    def stacks(self) -> list[tuple[list[str], Callable[[Tensor], Tangent]]]:
        """Names of layers of one shape and device, as `STACK` allows, and their surrogate."""
        alike: dict[tuple, list[str]] = {}
        for name, layer in self.layers.items():
            alike.setdefault((layer.weight.shape, layer.weight.device), []).append(name)
        stacks = []
        for names in alike.values():
            metric, weight = self.metrics[names[0]], self.layers[names[0]].weight
            size = max(1, STACK // (metric.element_size() * (metric.numel() + weight.numel())))
            for part in BatchSampler(names, size, drop_last=False):
                metrics = [self.metrics[name] for name in part]
                stacked = torch.stack(metrics) if len(part) > 1 else metrics[0][None]  # no copy
                stacks.append((part, self.kind(stacked)))
        return stacks

    def refresh(self, step: int) -> None:
        self.fell_back.clear()
        self.notes = {"fell_back": 0}
        if step % self.every == 0:
            self.held.clear()  # each stack makes its tangent anew where it is next asked for one

    def values(self) -> Iterator[Tensor]:
        for i, (names, surrogate) in enumerate(self.stacks):
            weights = [self.layers[name].weight for name in names]
            c, D = self.held.get(i) or self._tangent(i, weights, surrogate)
            if self.every > 1:
                self.held[i] = c, D.cpu() if self.memory.roots_on == "cpu" else D
            for weight, offset, slope in zip(weights, c, D, strict=True):
                W = whole(weight)  # has the graph
                yield offset + (slope.to(W) * W).sum()

    @torch.no_grad()
    @exactly()
    def _tangent(self, i: int, weights: list, surrogate: Callable) -> tuple[Tensor, Tensor]:
        """c (b,) and D (b, m, n) of stack i, at the weights as they are."""
        W = torch.stack([whole(weight).to(self.dtype_on(weight.device)) for weight in weights])
        value, D, fell_back = surrogate(W)
        self.fell_back[i] = int(fell_back.sum())
        self.notes = {"fell_back": sum(self.fell_back.values())}
        return value - (D * W).sum((-2, -1)), D
