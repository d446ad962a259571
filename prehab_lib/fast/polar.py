"""The polar factor U Vᵀ of M = U Σ Vᵀ: all that the nuclear norm and its gradient need.

‖M‖_* = ⟨P, M⟩, and P is the gradient.  Eigenvectors of M Mᵀ give it on CPUs, a few polynomials of M
on GPUs.  Both square M and so lose directions with small σᵢ: ‖P Pᵀ − I‖ tells when to use float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.cores import one_core

TOLERANCE = 1e-3  # of the defect: the cosine to the true factor is then above 0.999

# Polar Express (arXiv 2505.16932): a, b, c of a x + b x³ + c x⁵, each the best on the interval that
# those before it left of [1e-5, 1], which is taken 1e-3 longer above: beyond it values grow.
POLYNOMIALS = (
    (8.505355465588796, -25.204318233446983, 18.672511482352256),
    (4.252141439248473, -3.15023495157414, 0.5834997588157632),
    (4.249681954260529, -3.1485379277081686, 0.5833068252410898),
    (4.239261290317716, -3.1413449732754657, 0.5824890735015308),
    (4.195643369704271, -3.1111878909631216, 0.5790607819900021),
    (4.022057263294249, -2.990344672437035, 0.5653274863109935),
    (3.4535564799399294, -2.5835776714481256, 0.5192034764809329),
    (2.4338701254145, -1.783431156728449, 0.4299885441106069),
    (1.9076845403926284, -1.2848026928144494, 0.3776142073542154),
    (1.8740764778204833, -1.2481389663523852, 0.3740625032913584),
)


class Polar(NamedTuple):
    P: Tensor  # (..., m, n)
    fell_back: Tensor  # (...,): where float64 was needed


def polar(M: Tensor, known: Tensor | None = None, way: Callable | None = None) -> Polar:
    """The polar factors of M (..., m, n), batched, in M's dtype and without a graph.

    known (...,): matrices that need float64, as the last call found.  way: None is `by_products` on
    a GPU, `by_eigh` elsewhere.  The cosine to the true factor is above 0.999 and ⟨P, M⟩ within 1e-3
    of ‖M‖_* up to σ₁ / σ_p = 1e6; beyond, P is one of many gradients.
    """
    M = M.detach()
    way = way or (by_products if M.is_cuda else by_eigh)
    flat = M.reshape(-1, *M.shape[-2:])
    P = torch.empty_like(flat)
    exact = torch.zeros(len(flat), dtype=torch.bool) if known is None else known.flatten().clone()
    quick = ~exact
    if quick.any():
        P[quick] = way(flat[quick])
        if M.dtype != torch.float64:
            exact[quick] = ~(_defect(P[quick]) <= TOLERANCE).cpu()  # NaN is redone too
    for i in exact.nonzero().flatten().tolist():
        P[i] = by_eigh(on_factor_device(flat[i]), M.dtype).to(M.device)
    return Polar(P.reshape(M.shape), exact.reshape(M.shape[:-2]))


@one_core
def by_eigh(M: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """K^(−1/2) M in `dtype` (None: M's) by eigenvectors of K = M Mᵀ, 0 where below round-off."""
    if M.shape[-2] > M.shape[-1]:
        return by_eigh(M.mT, dtype).mT
    eigenvalues, Q = torch.linalg.eigh(M @ M.mT)  # (..., m), (..., m, m)
    tiny, eps = torch.finfo(M.dtype).tiny, torch.finfo(M.dtype).eps
    round_off = 4 * eps * eigenvalues[..., -1:].clamp_min(tiny)
    scale = torch.where(eigenvalues > round_off, eigenvalues.clamp_min(tiny).rsqrt(), 0)
    dtype = dtype or M.dtype
    return Q.to(dtype) @ (scale[..., None] * (Q.mT @ M)).to(dtype)


def by_products(M: Tensor) -> Tensor:
    """`POLYNOMIALS` in turn, X ← a X + b X Xᵀ X + c (X Xᵀ)² X, from M / ‖M Mᵀ‖_F^(1/2) (≥ σ₁)."""
    if M.shape[-2] > M.shape[-1]:
        return by_products(M.mT).mT
    norm = torch.linalg.matrix_norm(M @ M.mT, keepdim=True).sqrt()
    X = M / norm.clamp_min(torch.finfo(M.dtype).tiny)
    for a, b, c in POLYNOMIALS:
        A = X @ X.mT  # (..., p, p)
        X = a * X + (b * A + c * (A @ A)) @ X
    return X


def _defect(P: Tensor) -> Tensor:
    """‖P Pᵀ − I‖_F² / p of the smaller side p, (...,): about the share of directions lost."""
    small = P @ P.mT if P.shape[-2] <= P.shape[-1] else P.mT @ P
    identity = torch.eye(small.shape[-1], dtype=P.dtype, device=P.device)
    return (small - identity).square().sum((-2, -1)) / small.shape[-1]
