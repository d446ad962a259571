"""Truncation with a position that can be learned: singular values pass a smooth gate instead of a
cut.

F = U diag(σ_i T_i) Vᵀ for A = U diag(σ) Vᵀ, where the gate T falls from 1 to 0 around γ.  Source:
Dobi-SVD (arXiv 2502.02723). The released code differentiates the SVD and repairs 1 / (σ_i² − σ_j²);
here the product is differentiated as a whole, and only pairs of near-equal σ on both sides of the
gate are left to bound: there F is not continuous and has no gradient.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prehab_lib.inputs import check_positive

LIMIT = 1e4  # most that σ_j / (σ_i − σ_j) counts: σ closer than a part in 10⁴ are taken as that far apart


def gate(gamma: Tensor, count: int, beta: float) -> Tensor:
    """T (count,) in (0, 1), descending: T_i = ½ tanh(β (γ − i)) + ½ at i = ½, 1½, … for the first,
    second, … component.

    gamma: a scalar, in components.  beta: steepness; β → ∞ keeps the first γ components and nothing
    else.
    The paper counts i in whole numbers.  Half a component less, our own choice, makes γ = k the cut
    after k components, and Σ T_i ≈ γ, which is what the budget counts.
    """
    check_positive(beta=beta)
    centres = torch.arange(count, device=gamma.device, dtype=gamma.dtype) + 0.5
    return torch.sigmoid(2 * beta * (gamma - centres))  # ½ tanh(z) + ½, without its cancellation


def truncate_smoothly(A: Tensor, gamma: Tensor, beta: float, limit: float = LIMIT) -> Tensor:
    """F (t, m) = U diag(σ_i T_i(γ)) Vᵀ for A (t, m), differentiable once in A and in γ.

    gamma: a scalar, from 0 to min(t, m).  limit: bound of the gradient across the gate, whose norm
    is at most 1 + limit times that of what arrives.  One thin SVD, in float32 at least; F comes
    back in the dtype of A. Raises ValueError where A is no finite matrix, naming the shape.
    """
    if A.ndim != 2 or not torch.isfinite(A).all():
        raise ValueError(
            f"only a finite matrix (t, m) can be truncated: this one has shape {tuple(A.shape)}, or NaN in it"
        )
    check_positive(limit=limit)
    wide = A if A.dtype == torch.float64 else A.float()
    return GatedProduct.apply(wide, gate(gamma.to(wide), min(A.shape), beta), limit).to(A.dtype)


class GatedProduct(torch.autograd.Function):
    """F = U diag(σ T) Vᵀ of A (t, m) and a descending gate T (k,), k = min(t, m)."""

    @staticmethod
    def forward(ctx, A: Tensor, T: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        with torch.autocast(
            A.device.type, enabled=False
        ):  # in the precision of A, whatever surrounds it
            U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
            ctx.save_for_backward(U, sigma, Vh, T)
            return (U * (sigma * T)) @ Vh

    @staticmethod
    @once_differentiable
    def backward(ctx, G: Tensor):
        U, sigma, Vh, T = ctx.saved_tensors
        GV = G @ Vh.T  # (t, k)
        P = U.T @ GV  # (k, k)
        along_A = None
        if ctx.needs_input_grad[0]:
            symmetric, skew = divided_differences(sigma, T, ctx.limit)
            inside = symmetric * (P + P.T) / 2 + skew * (P - P.T) / 2
            UG = U.T @ G  # (k, m)
            # What G has outside the span of U, or of V, turns singular vectors: it passes with the
            # weight T = d / σ.
            along_A = (U @ inside + (GV - U @ P) * T) @ Vh + (U * T) @ (UG - P @ Vh)
        return along_A, P.diagonal() * sigma, None


def divided_differences(sigma: Tensor, T: Tensor, limit: float = LIMIT) -> tuple[Tensor, Tensor]:
    """Ω⁺ and Ω⁻ (k, k) for d = σ T: (d_i − d_j) / (σ_i − σ_j), and (d_i + d_j) / (σ_i + σ_j).  Both
    are symmetric.

    With σ_i ≥ σ_j, Ω⁺ = T_i + (T_i − T_j) σ_j / (σ_i − σ_j): so ties on one side of the gate, where
    T_i = T_j, need no case of their own, and only the last quotient, which has no unit, is bounded.
    Ω⁻ is a mean of T_i and T_j.
    """
    larger, smaller = torch.maximum(sigma[:, None], sigma), torch.minimum(sigma[:, None], sigma)
    first, second = (
        torch.maximum(T[:, None], T),
        torch.minimum(T[:, None], T),
    )  # σ and T both descend
    gap = torch.maximum(larger - smaller, smaller / limit)
    quotient = torch.where(gap > 0, smaller / gap, 0)
    total = larger + smaller
    mean = (first * larger + second * smaller) / torch.where(total > 0, total, 1)
    return first + (first - second) * quotient, torch.where(total > 0, mean, (first + second) / 2)
