"""Smooth stand-ins for the rank of a matrix, each a function of its singular values.

In prehab the matrix is M = W L (m, n): the weight times a root L of its input Gram, so that a
singular value says how much of the layer's *output* one direction carries.  The gradient of Σ gᵢ σᵢ
is U diag(g) Vᵀ, finite at ties and at rank deficiency; a zero matrix has value and gradient 0.
Cost: one thin singular value decomposition of M, about 6 q p² + 20 p³ operations with p ≤ q its
sides, and a product of its vectors, 2 q p², for the gradient.
"""

import torch
from torch import Tensor


def nuclear(M: Tensor) -> Tensor:
    """‖M‖_* = Σ σᵢ.   M (m, n) -> scalar.  Source: Eq. (4).  Pulls every σᵢ down by the same 1."""
    return torch.linalg.svdvals(M).sum()


def nuclear_ratio(M: Tensor) -> Tensor:
    """‖M‖_*² / ‖M‖_F², between 1 and rank M.   M (m, n) -> scalar.  Source: Eq. (5) as printed.

    The paper calls it "stable rank"; its reference and the released code mean `stable_rank`.
    """
    sigma = torch.linalg.svdvals(M)
    return _ratio(sigma.sum() ** 2, sigma.square().sum())


def stable_rank(M: Tensor) -> Tensor:
    """‖M‖_F² / ‖M‖₂², between 1 and rank M.   M (m, n) -> scalar.

    Source: Rudelson and Vershynin, the reference [6] of Eq. (5), and the released code.
    """
    return _ratio(M.square().sum(), torch.linalg.svdvals(M)[0] ** 2)


def entropy_rank(M: Tensor) -> Tensor:
    """exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ, between 1 and rank M.   M (m, n) -> scalar.

    Source: Roy and Vetterli's effective rank; used for analysis, as in Swift-SVD (arXiv
    2604.01609): it predicts the compressible rank better than `stable_rank`.
    """
    sigma, tiny = torch.linalg.svdvals(M), torch.finfo(M.dtype).tiny
    share = sigma / sigma.sum().clamp_min(tiny)
    share = share.clamp_min(tiny)  # the slope of p ln p is infinite at 0
    return torch.special.entr(share).sum().exp()


SURROGATES = {
    "nuclear": nuclear,
    "nuclear_ratio": nuclear_ratio,
    "stable_rank": stable_rank,
    "entropy_rank": entropy_rank,
}


def power_iteration(M: Tensor, steps: int, start: Tensor | None = None) -> tuple[Tensor, ...]:
    """Top singular triple by `steps` rounds of v ← Mᵀ(M v), normalised: u (m,), σ, v (n,).

    start (n,): of an earlier iteration; None is random, of a fixed seed.  The error of σ falls by
    (σ₂/σ₁)⁴ a step, so a small gap needs many.
    """
    if start is None:
        generator = torch.Generator(device=M.device).manual_seed(0)
        start = torch.randn(M.shape[1], dtype=M.dtype, device=M.device, generator=generator)
    v = _unit(start)
    for _ in range(steps):
        v = _unit(M.T @ (M @ v))
    u = M @ v
    return _unit(u), torch.linalg.vector_norm(u), v


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return numerator / denominator if denominator > 0 else numerator


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(vector.dtype).tiny)
