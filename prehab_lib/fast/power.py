"""The largest singular value by power iteration on several vectors, warm from call to call.

Four columns cost one reading of the matrix, as one does; the error falls by (σ₅/σ₁)² a round
instead of (σ₂/σ₁)².  A weight moves little in a step: the last vectors are a good start.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Top(NamedTuple):
    theta: Tensor  # (...,): λ₁ = σ₁², never overestimated
    U: Tensor  # (..., m, k): orthonormal columns to go on from; the first is u₁
    residual: Tensor  # (...,): ‖K u − θ u‖ / θ before the last product: an eigenvalue is that close


def top(A: Tensor, B: Tensor, U: Tensor, steps: int = 1) -> Top:
    """`steps` rounds of U ← K U, with Rayleigh and Ritz, on a symmetric K = A Bᵀ ≥ 0 (..., m, m).

    A, B (..., m, n): A = B = M gives σ₁² of M; A = W G and B = W that of W L for any root L of G.
    U (..., m, k): orthonormal, from `start` or the last call.  For A = 0 theta and residual are 0.
    """
    for _ in range(steps):
        # K U (..., m, k), K being symmetric: a few rows go faster than a few columns.
        Z = ((U.mT @ B) @ A.mT).mT
        H = U.mT @ Z  # (..., k, k)
        values, Q = torch.linalg.eigh((H + H.mT) / 2)
        Z = Z @ Q.flip(-1)
        u, Ku = (U @ Q[..., -1:])[..., 0], Z[..., 0]
        residual = torch.linalg.vector_norm(Ku - u * values[..., -1:], dim=-1)
        theta = torch.linalg.vector_norm(Ku, dim=-1)
        U = torch.linalg.qr(Z).Q
    return Top(theta, U, residual / theta.clamp_min(torch.finfo(A.dtype).tiny))


def start(A: Tensor) -> Tensor:
    """Random orthonormal columns (..., m, k) for A (..., m, n), of a fixed seed; k is 4, or m."""
    generator, m = torch.Generator().manual_seed(0), A.shape[-2]
    U = torch.randn(m, min(4, m), dtype=torch.float64, generator=generator)
    U = torch.linalg.qr(U).Q.to(A)
    return U.expand(*A.shape[:-2], *U.shape).clone()
