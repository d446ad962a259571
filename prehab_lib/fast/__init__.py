"""Rank surrogates of R(W L) and their gradients in W without a singular value decomposition, for
many layers at once.

Each is made for a stack of layers of one shape and called at every step, or every few; it keeps
between calls what makes the next one cheap.  All tests are against `surrogates` in float64.  Costs
are operations for one layer (m, n), p = min(m, n), q = max(m, n).
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from prehab_lib.fast.polar import polar
from prehab_lib.fast.power import start, top
from prehab_lib.inputs import check_whole

RESIDUAL = 2e-3  # of the top vector: σ₁² is then right to 2e-3 whatever the gap, and to its square over a clear one
COLD = 200  # rounds at most, at the first call or where `RESIDUAL` is missed


class Tangent(NamedTuple):
    """value (b,): R of each layer.  gradient (b, m, n): dR/dW.  fell_back (b,): where the fast way
    did not suffice.
    """

    value: Tensor
    gradient: Tensor
    fell_back: Tensor


class StableRank:
    """‖W L‖_F² / ‖W L‖₂² from the Gram G = L Lᵀ (b, n, n) itself: Y = W G gives ‖W L‖_F² = ⟨Y, W⟩
    and K = Y Wᵀ.

    Gradient: 2 (Y − S u uᵀ Y) / σ₁² with u the top left singular vector (digest of Eq. 6).  Neither
    a root nor W L is made. u comes from `rounds` rounds of `power.top`, warm, and then as many
    again and again, up to `COLD`, while the residual is above `RESIDUAL`; a layer where it stays so
    has fallen back.  Elsewhere the value is within 1e-3 and the cosine of the gradient above 0.999,
    unless σ₂ is within a per cent or so of σ₁ (σ₁ itself stays right).  Cost: 2 m n² + 16 m n a
    round.
    """

    metric_is: ClassVar[str] = "gram"

    def __init__(self, metric: Tensor, rounds: int | None = None):
        self.metric, self.rounds = metric, 1 if rounds is None else rounds
        check_whole(1, power_iterations=self.rounds)
        self.state: dict[str, Tensor] = {}

    def __call__(self, W: Tensor) -> Tangent:
        """W (b, m, n) in the metric's dtype."""
        Y = W @ self.metric.to(W)  # (b, m, n)
        found, done = (
            top(Y, W, self.state["U"].to(W) if self.state else start(W), self.rounds),
            self.rounds,
        )
        while done < COLD and (~(found.residual <= RESIDUAL)).any():
            found, done = top(Y, W, found.U, more := min(done, COLD - done)), done + more
        self.state["U"] = found.U
        value, over = _ratio((Y * W).sum((-2, -1)), found.theta)
        u = found.U[..., :1]  # (b, m, 1)
        gradient = 2 * over[:, None, None] * (Y - value[:, None, None] * (u @ (u.mT @ Y)))
        return Tangent(value, gradient, ~(found.residual <= RESIDUAL).cpu())


class Nuclear:
    """‖W L‖_* = ⟨P, M⟩ with M = W L and P its polar factor; gradient P Lᵀ.

    Error and fallback are those of `polar.polar`: a layer that once needed float64 goes there at
    once from then on. Cost: 4 m n² and the polar factor.
    """

    metric_is: ClassVar[str] = "root"

    def __init__(self, metric: Tensor, rounds: None = None, by: str | None = None):
        if rounds is not None:
            raise ValueError(
                "power_iterations are for the fast 'stable_rank' alone: leave them out"
            )
        self.metric, self.by = metric, by
        self.state: dict[str, Tensor] = {}

    def __call__(self, W: Tensor) -> Tangent:
        """W (b, m, n) in the metric's dtype."""
        L = self.metric.to(W)
        M = W @ L  # (b, m, n)
        found = polar(M, self.by, self.state.get("fell_back"))
        self.state["fell_back"] = found.fell_back
        value, slope = self._of(M, found.P)
        return Tangent(value, slope @ L.mT, found.fell_back)

    def _of(self, M: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        """R (b,) and dR/dM (b, m, n)."""
        return (P * M).sum((-2, -1)), P


class NuclearRatio(Nuclear):
    """‖W L‖_*² / ‖W L‖_F², Eq. (5) as printed; gradient 2 (‖M‖_* P − S M) Lᵀ / ‖M‖_F².  All else as
    `Nuclear`.
    """

    def _of(self, M: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        norm = (P * M).sum((-2, -1))
        value, over = _ratio(norm.square(), M.square().sum((-2, -1)))
        return value, 2 * over[:, None, None] * (norm[:, None, None] * P - value[:, None, None] * M)


FAST = {"stable_rank": StableRank, "nuclear": Nuclear, "nuclear_ratio": NuclearRatio}


def fast_named(name: str) -> type:
    """The fast form of a surrogate.  Raises ValueError that lists those there are."""
    if name not in FAST:
        raise ValueError(
            f"surrogate {name!r} has no fast arithmetic, only {', '.join(FAST)} do: use arithmetic='exact'"
        )
    return FAST[name]


def _ratio(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """The ratio and one over the denominator, both 0 where that is 0."""
    over = torch.where(denominator > 0, 1 / denominator, 0)
    return numerator * over, over
