"""Truncation with its way back: the gradient of a cut model's loss by its weights before."""

import torch
from torch import Tensor


def truncation(W: Tensor, gram: Tensor, rank: int):
    """Ŵ = U Uᵀ W, W's best `rank` components, and back: ∇f(Ŵ) -> gradient of f by W, all (m, n).

    U are eigenvectors of W G Wᵀ, gram (n, n) = G.  Source: Decomposable-Net (1910.13141), in W.
    """
    values, U = torch.linalg.eigh(W @ gram @ W.T)  # ascending
    rest, kept = U[:, :-rank], U[:, -rank:]  # (m, m − r), (m, r)

    def back(grad: Tensor) -> Tensor:
        pull = grad @ W.T
        turn = rest.T @ (pull + pull.T) @ kept / (values[-rank:] - values[:-rank, None])
        K = rest @ turn @ kept.T  # (m, m): no pair of two dropped components is in it
        return kept @ (kept.T @ grad) + (K + K.T) @ W @ gram

    return kept @ (kept.T @ W), back
