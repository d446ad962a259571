"""R(W L) and its gradient in W, for many layers of one shape at once.

Each class is made for a stack of metrics (roots or Grams) and called with W (b, m, n).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prehab_lib.fast.polar import polar
from prehab_lib.fast.power import start, top

RESIDUAL = 2e-3  # of the top vector: σ₁² is then right to 2e-3, over a clear gap to its square
COLD = 200  # rounds at most, at the first call or where `RESIDUAL` is missed


class Tangent(NamedTuple):
    value: Tensor  # (b,)
    gradient: Tensor  # (b, m, n): dR/dW
    fell_back: Tensor  # (b,): where the fast way did not suffice


def _unit(W: Tensor, size: Tensor) -> Tensor:
    """(b, 1, 1): the power of two that brings W (b, m, n) times a root of `size` (b,) near 1.

    Squares of W L then neither overflow nor vanish, and no other bit of a result changes.
    """
    exponent = torch.frexp(W.abs().amax((-2, -1)))[1] + torch.frexp(size.to(W))[1]
    return torch.ldexp(torch.ones_like(W[:, :1, :1]), -exponent.clamp(-126, 126)[:, None, None])


class StableRank:
    """‖W L‖_F² / ‖W L‖₂² from the Gram G = L Lᵀ (b, n, n): with Y = W G, ‖W L‖_F² = ⟨Y, W⟩.

    Gradient: 2 (Y − S u uᵀ Y) / σ₁² (Eq. 6).  The top left singular vector u comes from warm rounds
    of `power.top` on Y Wᵀ.  Value within 1e-3 and cosine of the gradient above 0.999, unless σ₂ is
    within a per cent of σ₁; a layer whose residual stays above `RESIDUAL` has fallen back.
    """

    metric_is = "gram"

    def __init__(self, metric: Tensor):
        self.metric, self.size = metric, metric.abs().amax((-2, -1)).sqrt()
        self.U: Tensor | None = None  # (b, m, k), where the last call ended

    def __call__(self, W: Tensor) -> Tangent:
        unit = _unit(W, self.size)
        W = W * unit
        Y = W @ self.metric.to(W)  # (b, m, n)
        self.U = start(W) if self.U is None else self.U.to(W)
        rounds, more = 0, 1
        while more:
            theta, self.U, residual = top(Y, W, self.U, more)
            rounds += more
            unsettled = ~(residual <= RESIDUAL)  # NaN counts as unsettled
            # Twice as many each time: on a GPU every look at the residual makes the CPU wait.
            more = min(rounds, COLD - rounds) if unsettled.any() else 0
        value, over = _ratio((Y * W).sum((-2, -1)), theta)
        u = self.U[..., :1]  # (b, m, 1)
        gradient = 2 * over[:, None, None] * (Y - value[:, None, None] * (u @ (u.mT @ Y)))
        return Tangent(value, gradient * unit, unsettled.cpu())


class Nuclear:
    """‖W L‖_* = ⟨P, M⟩ of M = W L and its polar factor; gradient P Lᵀ.  Errors: `polar.polar`."""

    metric_is = "root"

    def __init__(self, metric: Tensor):
        self.metric, self.size = metric, metric.abs().amax((-2, -1))
        self.fell_back: Tensor | None = None  # (b,), at the last call: these do so at once

    def __call__(self, W: Tensor) -> Tangent:
        L = self.metric.to(W)
        unit = _unit(W, self.size)
        M = (W * unit) @ L  # (b, m, n)
        P, self.fell_back = polar(M, self.fell_back)
        value, slope = self._of(M, P, unit)
        return Tangent(value, slope @ L.mT, self.fell_back)

    def _of(self, M: Tensor, P: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """R (b,) and dR/dM (b, m, n) at M / unit."""
        return (P * M).sum((-2, -1)) / unit[:, 0, 0], P


class NuclearRatio(Nuclear):
    """‖W L‖_*² / ‖W L‖_F², Eq. (5) as printed; gradient 2 (‖M‖_* P − S M) Lᵀ / ‖M‖_F²."""

    def _of(self, M: Tensor, P: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        norm = (P * M).sum((-2, -1))
        value, over = _ratio(norm.square(), M.square().sum((-2, -1)))
        over = 2 * unit * over[:, None, None]
        return value, over * (norm[:, None, None] * P - value[:, None, None] * M)


FAST = {"stable_rank": StableRank, "nuclear": Nuclear, "nuclear_ratio": NuclearRatio}


def _ratio(numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    """The ratio and one over the denominator, both 0 where that is 0."""
    over = torch.where(denominator > 0, 1 / denominator, 0)
    return numerator * over, over
