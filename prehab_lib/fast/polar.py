"""The polar factor U Vᵀ of M = U Σ Vᵀ: all that the nuclear norm and its gradient need, without a
singular value decomposition.

‖M‖_* = ⟨P, M⟩ with P = U Vᵀ, and P is the gradient.  Two ways to it: an eigendecomposition of the
Gram of M's smaller side, which suits CPUs, and a few polynomials of M made of matrix products
alone, which suit GPUs.  Both square M and so lose directions whose singular values are small beside
σ₁; how many, ‖P Pᵀ − I‖ tells, and then float64 takes over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from prehab_lib.roots import on_factor_device

TOLERANCE = 1e-3  # of the defect: the cosine to the true factor is then above 0.999
LOW = 1e-5  # σ / norm down to which the polynomials reach: below it float32 products leave noise
SLACK = 1e-3  # of the intervals' upper ends: a value that round-off pushes out of them would grow without bound


@dataclass(frozen=True)
class Polar:
    """P (..., m, n).  defect (...,): ‖P Pᵀ − I‖_F² / p of the smaller side p, about the share of
    directions that are lost.

    fell_back (...,): where float64 was needed.  What is lost even then has singular values below
    round-off: M is of lower rank, and P is one of many gradients.
    """

    P: Tensor
    defect: Tensor
    fell_back: Tensor


def polar(M: Tensor, by: str | None = None, known: Tensor | None = None) -> Polar:
    """The polar factors of M (..., m, n), batched, in M's dtype and without a graph.

    by: a key of `WAYS`; None is "products" on a GPU and "eigh" elsewhere.  known (...,): matrices
    that go to float64 at once, as the last call found them to need it.

    Error against the float64 factor: with a defect below `TOLERANCE` the cosine is above 0.999 and
    ⟨P, M⟩ is within 1e-3 of ‖M‖_*; where the defect is larger the matrix is redone in float64,
    whose eigendecomposition keeps these bounds up to σ₁ / σ_p = 1e6.  Operations, the defect's 2 p²
    q included, with p = min(m, n), q = max(m, n): "eigh" 9 p³ + 8 p² q, "products" 10 × (4 p² q + 2
    p³) + 4 p² q.
    Raises ValueError for an unknown way.
    """
    way = WAYS[by or ("products" if M.is_cuda else "eigh")] if by in (None, *WAYS) else _unknown(by)
    M = M.detach()
    flat = M.reshape(-1, *M.shape[-2:])
    bad = torch.zeros(len(flat), dtype=torch.bool) if known is None else known.reshape(-1).clone()
    P, defect = torch.empty_like(flat), flat.new_zeros(len(flat))
    good = (~bad).nonzero().flatten()
    if len(good):
        found = way(flat if len(good) == len(flat) else flat[good])
        P[good], defect[good] = found, _defect(found)
        if M.dtype != torch.float64:
            bad[good] = (~(defect[good] <= TOLERANCE)).cpu()  # NaN counts as bad
    for i in bad.nonzero().flatten().tolist():
        P[i] = by_eigh(on_factor_device(flat[i]), M.dtype).to(M.device)
        defect[i] = _defect(P[i])
    return Polar(P.reshape(M.shape), defect.reshape(M.shape[:-2]), bad.reshape(M.shape[:-2]))


def by_eigh(M: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """K^(−1/2) M with K = M Mᵀ (or the same from the right) by eigenvectors of K; directions below
    round-off become 0.

    dtype: of the result and of the last product, whose factors are orthonormal and lose nothing;
    None is M's.
    """
    if M.shape[-2] > M.shape[-1]:
        return by_eigh(M.mT, dtype).mT
    eigenvalues, Q = torch.linalg.eigh(M @ M.mT)  # (..., m), (..., m, m)
    top = eigenvalues[..., -1:].clamp_min(torch.finfo(M.dtype).tiny)
    resolved = eigenvalues > top * (4 * torch.finfo(M.dtype).eps)
    scale = torch.where(resolved, eigenvalues.clamp_min(torch.finfo(M.dtype).tiny).rsqrt(), 0)
    dtype = dtype or M.dtype
    return Q.to(dtype) @ (scale[..., None] * (Q.mT @ M)).to(dtype)


def by_products(M: Tensor) -> Tensor:
    """Polynomials X ← a X + b X Xᵀ X + c (X Xᵀ)² X that take singular values in [LOW, 1] to 1:
    matrix products alone.

    Source: Polar Express (arXiv 2505.16932): each polynomial is the best of degree 5 on the
    interval that the ones before it left.  M is first divided by ‖M Mᵀ‖_F^(1/2), which is at least
    σ₁.
    """
    if M.shape[-2] > M.shape[-1]:
        return by_products(M.mT).mT
    norm = torch.linalg.matrix_norm(M @ M.mT, keepdim=True).sqrt()
    X = M / norm.clamp_min(torch.finfo(M.dtype).tiny)
    for a, b, c in polynomials():
        A = X @ X.mT  # (..., p, p)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X


WAYS: dict[str, Callable[[Tensor], Tensor]] = {"eigh": by_eigh, "products": by_products}


@cache
def polynomials(low: float = LOW, within: float = 1e-6) -> tuple[tuple[float, float, float], ...]:
    """Coefficients (a, b, c), one polynomial after the other, until [low, 1] is mapped into 1 ±
    `within`.
    """
    found, high = [], 1.0
    while high - low > 2 * within:
        high *= 1 + SLACK
        *coefficients, error = quintic(low / high)
        a, b, c = (
            value / high**power for value, power in zip(coefficients, (1, 3, 5), strict=True)
        )
        found.append((a, b, c))
        low, high = 1 - error, 1 + error
    return tuple(found)


def quintic(low: float) -> tuple[float, float, float, float]:
    """a, b, c and E of the odd polynomial a x + b x³ + c x⁵ nearest to 1 on [low, 1], E its largest
    error there.

    By Remez exchange: the best one errs by −E, E, −E, E at low, at its two turning points and at 1.
    """
    if low > 0.999:  # the turning points merge; the limit is Newton–Schulz's polynomial of degree 5
        distance = (1 - low) / (1 + low)  # from 1, once the interval is centred there
        a, b, c = (
            value * (2 / (1 + low)) ** power
            for value, power in zip((1.875, -1.25, 0.375), (1, 3, 5), strict=True)
        )
        return a, b, c, 2.5 * distance**3 * 1.01
    first, second = low + (1 - low) * 0.25, low + (1 - low) * 0.75
    error = 1.0
    while True:
        points = torch.tensor([low, first, second, 1.0], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, new = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(new - error) <= 1e-12:
            return a, b, c, abs(new)
        error = new
        root = (9 * b * b - 20 * a * c) ** 0.5  # turning points: a + 3 b x² + 5 c x⁴ = 0
        first, second = sorted(((-3 * b + s * root) / (10 * c)) ** 0.5 for s in (-1, 1))


def _defect(P: Tensor) -> Tensor:
    """‖P Pᵀ − I‖_F² / p of the smaller side, (...,)."""
    small = P @ P.mT if P.shape[-2] <= P.shape[-1] else P.mT @ P
    identity = torch.eye(small.shape[-1], dtype=P.dtype, device=P.device)
    return (small - identity).square().sum((-2, -1)) / small.shape[-1]


def _unknown(by: str):
    raise ValueError(f"by = {by!r} is not known: choose one of {', '.join(WAYS)}")
