"""Heterogeneous prehab: a penalty on what truncation at the *planned* ranks will drop, layer by
layer.

τ(k) = Σ_{i>k} σᵢ² / Σ σᵢ² of A = W L, the share of a layer's output that its planned rank k loses.
Between refreshes the penalty is ‖A − Q Qᵀ A‖_F² / ‖A‖_F² with Q = U_k held fixed: it lies above τ,
touches it where Q was made, and its gradient, 2 (A − Q Qᵀ A) Lᵀ / ‖A‖_F² with ‖A‖_F² as a constant,
takes no decomposition.  Layers that the plan leaves dense get no penalty.  Source: the paper's
future work on heterogeneous ranks, in a form of our own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.rank_term import RankTerm
from prehab_lib.scale.sharding import refuse_sharded
from prehab_lib.stats import LayerStats

Ranks = Mapping[str, int | None]
MOST = 50.0  # of an exponent: far beyond any bounds, and no overflow


@dataclass(frozen=True)
class Tail:
    """The penalty Σ_ℓ w_ℓ τ_ℓ(k_ℓ): pass it to `prehab` as `surrogate`.

    ranks: layer -> planned rank, None where it stays dense; every trained layer has one.  Or plan:
    model -> such ranks, called with the model in training at every refresh.  refresh: steps from
    one Q, and one plan, to the next. weights: layer -> relative λ_ℓ; None gives all planned layers
    the same (see `inverse_curvature`).
    ascent: step η of a dual ascent, λ_ℓ ← λ_ℓ exp(η (τ_ℓ − ε_ℓ) / ε_ℓ) at every refresh; None
    leaves the weights alone. targets: layer -> ε_ℓ; half of the first τ_ℓ for a layer without one.
    bounds: of what ascent makes of a weight, as multiples of it.  equal_total: scale the weights so
    that Σ λ_ℓ is what the same λ spread over *all* layers sums to; else a planned layer of weight 1
    gets what uniform λ would give it.

    Memory: beside the roots one Q (m, k) of every planned layer; each refresh makes one
    decomposition a layer.

    On small examples the size of λ decided everything, with optima of 10 to 100 (the paper's λ
    belongs to another penalty); weights and ascent changed little, in either direction.  So uniform
    weights are the default.
    """

    ranks: Ranks | None = None
    plan: Callable[[nn.Module], Ranks] | None = None
    refresh: int = 50
    weights: Mapping[str, float] | None = None
    ascent: float | None = None
    targets: Mapping[str, float] | None = None
    bounds: tuple[float, float] = (0.1, 10.0)
    equal_total: bool = True

    def __post_init__(self):
        if (self.ranks is None) == (self.plan is None):
            raise ValueError(
                "Tail needs planned ranks: give either ranks={layer: rank or None} or plan=function of the model"
            )
        check_whole(1, refresh=self.refresh)
        check_positive(
            **{f"the weight of {name!r}": value for name, value in (self.weights or {}).items()}
        )
        check_positive(
            **{f"the target of {name!r}": value for name, value in (self.targets or {}).items()}
        )
        low, high = self.bounds
        check_positive(**{"the lower bound": low, "the upper bound": high})
        if not low <= 1 <= high:
            raise ValueError(
                f"bounds = {self.bounds}: they multiply a weight, so 1 lies between them"
            )
        if self.ascent is not None:
            check_positive(ascent=self.ascent)

    def described(self) -> dict:
        """What a checkpoint is bound to; of a plan its name alone."""
        plan = self.plan and getattr(self.plan, "__qualname__", type(self.plan).__qualname__)
        plain = {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
        }
        return plain | {"plan": plan}


class TailTerm(RankTerm):
    """R = Σ_ℓ w_ℓ τ_ℓ, summed or averaged over all layers; its state can be read off the rows that
    `refresh` returns.
    """

    of: Tail

    def check(
        self, model: nn.Module, coordinates: str, compute: str | None, checkpoint_every: int | None
    ) -> None:
        """Raises ValueError for what cannot be done: before the first step."""
        for option in ("ranks", "weights", "targets"):
            self._check_names(option, getattr(self.of, option))
        if self.of.plan is not None:
            refuse_sharded(model, "a plan", "fix the ranks with Tail(ranks=...)")
            if coordinates == "whitened":
                raise ValueError(
                    "a plan looks at plain weights: use coordinates='weight', or fix Tail(ranks=...)"
                )
            if compute != "float32" and any(p.dtype == torch.bfloat16 for p in model.parameters()):
                raise ValueError(
                    "a plan runs the model in one precision: pass compute='float32', or fix Tail(ranks=...)"
                )
        if checkpoint_every is not None and checkpoint_every % self.of.refresh:
            raise ValueError(
                f"checkpoint_every = {checkpoint_every} is no multiple of refresh = {self.of.refresh}: a run resumes where "
                "Q is made again, or it would be another run"
            )

    @torch.no_grad()
    def refresh(self, model: nn.Module, step: int, rows: list[dict]) -> dict:
        """Every `refresh` steps a new plan, new Q and new weights; these, in what the step's row
        gets under "tail".
        """
        if step % self.of.refresh:
            return {}
        ranks, before = self._planned(model), self._last(rows)
        self.Q, tails = {}, {}
        for name, rank in ranks.items():
            if rank is not None:
                Q, tails[name] = leading(self.whitened(name), rank)
                self.Q[name] = Q.to(self.roots[name].device)
        targets = {name: (self.of.targets or {}).get(name, tau / 2) for name, tau in tails.items()}
        targets |= before["targets"]
        multipliers = dict.fromkeys(self.layers, 1.0) | before["multipliers"]
        if self.of.ascent is not None and before["ranks"]:
            multipliers |= ascended(
                {name: multipliers[name] for name in tails},
                tails,
                targets,
                self.of.ascent,
                self.of.bounds,
            )
        given = self.of.weights or {}
        wanted = {name: given.get(name, 1.0) * multipliers[name] for name in tails}
        self.weights = equal_total(wanted, len(self.layers)) if self.of.equal_total else wanted
        state = dict(
            ranks=ranks, tails=tails, weights=self.weights, multipliers=multipliers, targets=targets
        )
        return {"tail": state}

    def names(self) -> list[str]:
        return list(self.Q)

    def _value(self, name: str) -> Tensor:
        A = self.whitened(name)
        return self.weights[name] * tail_ratio(A, self.Q[name].to(A))

    def _planned(self, model: nn.Module) -> dict[str, int | None]:
        """The plan, checked and in the order of the layers."""
        if self.of.plan is None:
            ranks = self.of.ranks
        else:
            with torch.enable_grad():
                ranks = self.of.plan(model)
            self._check_names("the plan", ranks)
        return {name: ranks[name] for name in self.layers}

    def _last(self, rows: list[dict]) -> dict:
        return next(
            (row["tail"] for row in reversed(rows) if "tail" in row),
            dict(ranks={}, multipliers={}, targets={}),
        )

    def _check_names(self, what: str, given: Mapping | None) -> None:
        if given is None:
            return
        if missing := [name for name in self.layers if name not in given and what != "targets"]:
            raise ValueError(
                f"{what} of the tail penalty lacks layer {missing[0]!r}: give every layer that is trained one"
            )
        if unknown := [name for name in given if name not in self.layers]:
            raise ValueError(
                f"{what} of the tail penalty names {unknown[0]!r}, which is not among the layers of stats"
            )
        if what in ("ranks", "the plan"):
            for name, layer in self.layers.items():
                _check_rank(what, name, given[name], min(layer.weight.shape))


def tail_ratio(A: Tensor, Q: Tensor) -> Tensor:
    """‖A − Q Qᵀ A‖_F² / ‖A‖_F² for A (m, n) and orthonormal columns Q (m, k), with ‖A‖_F² as a
    constant; 0 for A = 0.

    At least τ(k) of A, and equal to it where Q spans the top k left singular vectors.
    """
    rest = A - Q @ (Q.T @ A)
    return rest.square().sum() / A.detach().square().sum().clamp_min(torch.finfo(A.dtype).tiny)


def leading(A: Tensor, rank: int) -> tuple[Tensor, float]:
    """Q (m, rank), the top left singular vectors of A (m, n), and τ(rank)."""
    U, sigma, _ = torch.linalg.svd(A, full_matrices=False)
    energy = sigma.square()
    return U[:, :rank].clone(), float(
        energy[rank:].sum() / energy.sum().clamp_min(torch.finfo(A.dtype).tiny)
    )


def equal_total(weights: Mapping[str, float], layers: int) -> dict[str, float]:
    """The weights times one factor, so that they sum to the number of `layers`: what uniform
    weights of 1 would.
    """
    total = sum(weights.values())
    return {name: weight * layers / total for name, weight in weights.items()}


def ascended(
    multipliers: Mapping[str, float],
    tails: Mapping[str, float],
    targets: Mapping[str, float],
    ascent: float,
    bounds: tuple[float, float],
) -> dict[str, float]:
    """One step of dual ascent to τ ≤ ε: each multiplier times exp(η (τ − ε) / ε), kept within
    `bounds`; as it is for ε = 0.
    """
    low, high = bounds
    moved = dict(multipliers)
    for name, target in ((name, targets[name]) for name in multipliers):
        if target > 0:
            exponent = max(-MOST, min(ascent * (tails[name] - target) / target, MOST))
            moved[name] = min(max(multipliers[name] * math.exp(exponent), low), high)
    return moved


def inverse_curvature(stats: Mapping[str, LayerStats], floor: float = 1e-6) -> dict[str, float]:
    """layer -> f̄ / f, for `Tail.weights`: a layer that the task loss bends little in gets a larger
    λ.

    f is the mean square of the entries of G L⁻ᵀ, the task gradient in whitened coordinates, with G
    = stats.grad (m, n) and the Gram's eigenvalues raised to `floor` times their mean; within a
    tenth and ten times their mean f̄ over layers.  A rough proxy of curvature: G is a mean over
    samples, which is small where training has ended.
    Raises ValueError where the statistics "gram" or "grad" were not collected, or floor is not
    above 0.
    """
    check_positive(floor=floor)
    f = {}
    for name, found in stats.items():
        G, L = found.need("grad", "inverse_curvature"), found.gram_root(floor)
        f[name] = float(
            (G.to(L) @ (L / L.square().sum(0))).square().mean()
        )  # L = Q √λ, so L⁻ᵀ = L / λ
    mean = sum(f.values()) / len(f)
    return {
        name: 1 / min(max(value / mean, 0.1), 10.0) if mean > 0 else 1.0
        for name, value in f.items()
    }


def _check_rank(what: str, name: str, rank: int | None, most: int) -> None:
    whole = isinstance(rank, int) and not isinstance(rank, bool)
    if rank is not None and not (whole and 1 <= rank <= most):
        raise ValueError(
            f"{what} of the tail penalty gives {name!r} rank {rank!r}: it allows 1 to {most}, or None"
        )
