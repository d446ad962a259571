"""Heterogeneous prehab: a penalty on what truncation at the *planned* ranks will drop.

τ(k) = Σ_{i>k} σᵢ² / Σ σᵢ² of A = W L is the share of a layer's output that its rank k loses.  With
Q = U_k held fixed between refreshes, ‖A − Q Qᵀ A‖_F² / ‖A‖_F² lies above τ, touches it where Q was
made, and has a gradient that takes no decomposition.
Source: the paper's future work on heterogeneous ranks, in a form of our own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_whole
from prehab_lib.rank_term import RankTerm
from prehab_lib.statistics.cores import one_core

Ranks = Mapping[str, int | None]


@dataclass(frozen=True)
class Tail:
    """The penalty Σ_ℓ w τ_ℓ(k_ℓ): pass it to `prehab` as `surrogate`.

    ranks: layer -> planned rank, None where it stays dense; every trained layer has one.  Or plan:
    model -> such ranks, called with the model in training at every refresh.  refresh: steps from
    one Q, and one plan, to the next.  The weight w is the same for all planned layers, such that
    they sum to the number of *all* layers.  On small examples optima of λ were 10 to 100.
    """

    ranks: Ranks | None = None
    plan: Callable[[nn.Module], Ranks] | None = None
    refresh: int = 50

    def __post_init__(self):
        if (self.ranks is None) == (self.plan is None):
            either = "either ranks={layer: rank or None} or plan=function of the model"
            raise ValueError(f"Tail needs planned ranks: give {either}")
        check_whole(1, refresh=self.refresh)

    def term(self, *settings) -> "TailTerm":
        return TailTerm(self, *settings)


class TailTerm(RankTerm):
    """R = w Σ_ℓ τ_ℓ, summed or averaged over all layers."""

    def __init__(self, tail: Tail, *settings):
        super().__init__(tail_ratio, *settings)
        self.tail = tail
        if tail.plan is None:
            self._check_ranks("ranks", tail.ranks)
            return
        fix = "fix Tail(ranks=...)"
        if self.joint:
            raise ValueError(f"a plan looks at plain weights: use coordinates='weight', or {fix}")
        in_bfloat16 = any(weight.dtype == torch.bfloat16 for weight in self.model.parameters())
        if in_bfloat16 and self.memory.compute != "float32":
            raise ValueError(f"a plan runs in one precision: pass compute='float32', or {fix}")

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Every `refresh` steps a new plan and new Q, which the step's row has under "tail"."""
        self.notes = {}
        if step % self.tail.refresh:
            return
        ranks = self.tail.ranks
        if ranks is None:
            with torch.enable_grad():
                ranks = self.tail.plan(self.model)
            self._check_ranks("the plan", ranks)
        self.Q, tails = {}, {}
        self.names = [name for name in self.layers if ranks[name] is not None]
        for name in self.names:
            Q, tails[name] = leading(self.whitened(name), ranks[name])
            self.Q[name] = Q.to(self.roots[name].device)
        self.weight = len(self.layers) / max(len(tails), 1)
        weights = dict.fromkeys(tails, self.weight)
        self.notes = {"tail": {"ranks": dict(ranks), "tails": tails, "weights": weights}}

    def _value(self, name: str) -> Tensor:
        A = self.whitened(name)
        return self.weight * self.of(A, self.Q[name].to(A))

    def _check_ranks(self, what: str, ranks: Ranks) -> None:
        what = f"{what} of the tail penalty"
        for name, layer in self.layers.items():
            if name not in ranks:
                raise ValueError(f"{what} lacks layer {name!r}: give every trained layer one")
            if ranks[name] is not None:
                check_whole(1, min(layer.weight.shape), **{f"rank of {name}": ranks[name]})


def tail_ratio(A: Tensor, Q: Tensor) -> Tensor:
    """‖A − Q Qᵀ A‖_F² / ‖A‖_F² for A (m, n), orthonormal Q (m, k), with ‖A‖_F² as a constant."""
    rest = A - Q @ (Q.T @ A)
    return rest.square().sum() / A.detach().square().sum().clamp_min(torch.finfo(A.dtype).tiny)


@one_core
def leading(A: Tensor, rank: int) -> tuple[Tensor, float]:
    """Q (m, rank), the top left singular vectors of A (m, n), and τ(rank)."""
    U, sigma, _ = torch.linalg.svd(A, full_matrices=False)
    energy = sigma.square()
    total = energy.sum().clamp_min(torch.finfo(A.dtype).tiny)
    return U[:, :rank].clone(), float(energy[rank:].sum() / total)
