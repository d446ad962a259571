"""R(W L) and its gradient in W, for many layers of one shape at once.

Each class is made for a stack of metrics (roots or Grams) and called at every step, or every few;
it keeps between calls what makes the next one cheap.  All tests are against `surrogates` in
float64.  Costs are operations for one layer (m, n), p = min(m, n), q = max(m, n).
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from prehab_lib.fast.polar import polar
from prehab_lib.fast.power import start, top

# Of the top vector: σ₁² is then right to 2e-3 whatever the gap, and to its square over a clear one.
RESIDUAL = 2e-3
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

    Gradient: 2 (Y − S u uᵀ Y) / σ₁² with u the top left singular vector (Eq. 6).  Neither a root
    nor W L is made.  u comes from one warm round of `power.top`, and more while the residual is
    above `RESIDUAL`; a layer where it stays so after `COLD` rounds has fallen back.  Elsewhere the
    value is within 1e-3 and the cosine of the gradient above 0.999, unless σ₂ is within a per cent
    or so of σ₁ (σ₁ itself stays right).  Cost: 2 m n² + 16 m n a round.
    """

    metric_is: ClassVar[str] = "gram"

    def __init__(self, metric: Tensor):
        self.metric = metric
        self.U: Tensor | None = None  # (b, m, k), where the last call ended

    def __call__(self, W: Tensor) -> Tangent:
        """W (b, m, n) in the metric's dtype."""
        Y = W @ self.metric.to(W)  # (b, m, n)
        best = top(Y, W, start(W) if self.U is None else self.U.to(W), 1)
        rounds = 1
        # Twice as many each time: on a GPU every look at the residual makes the CPU wait.
        while rounds < COLD and _unsettled(best.residual).any():
            more = min(rounds, COLD - rounds)
            best = top(Y, W, best.U, more)
            rounds += more
        self.U = best.U
        value, over = _ratio((Y * W).sum((-2, -1)), best.theta)
        u = best.U[..., :1]  # (b, m, 1)
        gradient = 2 * over[:, None, None] * (Y - value[:, None, None] * (u @ (u.mT @ Y)))
        return Tangent(value, gradient, _unsettled(best.residual).cpu())


class Nuclear:
    """‖W L‖_* = ⟨P, M⟩ with M = W L and P its polar factor; gradient P Lᵀ.

    Error and fallback are those of `polar.polar`: a layer that once needed float64 goes there at
    once from then on. Cost: 4 m n² and the polar factor.
    """

    metric_is: ClassVar[str] = "root"

    def __init__(self, metric: Tensor):
        self.metric = metric
        self.fell_back: Tensor | None = None  # (b,), at the last call

    def __call__(self, W: Tensor) -> Tangent:
        """W (b, m, n) in the metric's dtype."""
        L = self.metric.to(W)
        M = W @ L  # (b, m, n)
        factor = polar(M, self.fell_back)
        self.fell_back = factor.fell_back
        value, slope = self._of(M, factor.P)
        return Tangent(value, slope @ L.mT, factor.fell_back)

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


def _unsettled(residual: Tensor) -> Tensor:
    return ~(residual <= RESIDUAL)  # NaN counts as unsettled


def _ratio(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """The ratio and one over the denominator, both 0 where that is 0."""
    over = torch.where(denominator > 0, 1 / denominator, 0)
    return numerator * over, over
