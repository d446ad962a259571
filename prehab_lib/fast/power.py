"""The largest singular value by power iteration: on several vectors at once, and warm from one call
to the next.

A product with four columns reads the matrix once, as a product with one does, and the error falls
by (σ₅/σ₁)² a round where one column's falls by (σ₂/σ₁)².  A weight moves little in a training step,
so what the last step found is a good start.
"""

from typing import NamedTuple

import torch
from torch import Tensor

COLUMNS = 4


class Top(NamedTuple):
    """theta (...,): λ₁ = σ₁², never overestimated.  U (..., m, k): orthonormal columns to go on
    from, the first is u₁.

    residual (...,): ‖K u − θ u‖ / θ before the last product with K: an eigenvalue lies that close
    to θ, and the sine of the angle to u₁ is at most the residual over the relative gap.
    """

    theta: Tensor
    U: Tensor
    residual: Tensor


def top(A: Tensor, B: Tensor, U: Tensor, steps: int = 1) -> Top:
    """`steps` rounds of U ← K U on K = A Bᵀ (..., m, m), symmetric and positive semi-definite, with
    Rayleigh and Ritz.

    A, B (..., m, n): A = B = M gives σ₁² of M; A = W G and B = W give σ₁² of W L for any root L of
    G, without root or product.  U (..., m, k): orthonormal, from `start` or the last call.  A round
    takes 4 m n k operations and reads A and B once. A zero matrix has theta 0 and residual 0.
    """
    tiny = torch.finfo(A.dtype).tiny
    for _ in range(steps):
        # K U (..., m, k), K being symmetric: a few rows go faster than a few columns.
        Z = ((U.mT @ B) @ A.mT).mT
        H = U.mT @ Z  # (..., k, k)
        values, Q = torch.linalg.eigh((H + H.mT) / 2)
        values, Q = values.flip(-1), Q.flip(-1)
        Z = Z @ Q
        ritz = values[..., :1]
        residual = torch.linalg.vector_norm(Z[..., 0] - (U @ Q[..., :1])[..., 0] * ritz, dim=-1)
        theta = torch.linalg.vector_norm(Z[..., 0], dim=-1)
        U = torch.linalg.qr(Z).Q
    return Top(theta, U, residual / theta.clamp_min(tiny))


def start(A: Tensor) -> Tensor:
    """Random orthonormal columns (..., m, k) for A (..., m, n), of a fixed seed; k is 4, or m."""
    k = min(COLUMNS, A.shape[-2])
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(A.shape[-2], k, dtype=torch.float64, generator=generator)
    U = torch.linalg.qr(U).Q.to(A)
    return U.expand(*A.shape[:-2], *U.shape).clone()
