"""The best left factor for given inputs: least squares from a Gram, also where the data leave it
open.
"""

import math

import torch
from torch import Tensor


def refit(
    W: Tensor, U: Tensor, V: Tensor, gram: Tensor, eps: float = torch.finfo(torch.float64).eps
) -> Tensor:
    """A U' (m, r) that minimises tr (W − U' V) gram (W − U' V)ᵀ, as U where the data leave a
    choice.

    W (m, n), U (m, r), V (r, n), gram (n, n), all float64.  eps: precision of the products behind
    the Gram.  What lies in its round-off is no data, see `_without_noise`; after that, eigenvalues
    of V gram Vᵀ (its rows scaled to one energy) below 10 r times float64's precision, relative to
    the largest, count as 0.
    """
    scale, G = _without_noise(gram, eps)  # (n,), (n, n)
    E, V = (W - U @ V) * scale, V * scale
    energy = V.norm(dim=1)
    unit = torch.where(energy > 0, 1 / energy, 0)  # (r,)
    GV = G @ (unit[:, None] * V).T  # (n, r)
    K = unit[:, None] * (V @ GV)  # (r, r)
    eigenvalues, Q = torch.linalg.eigh((K + K.T) / 2)
    seen = eigenvalues > 10 * len(K) * torch.finfo(K.dtype).eps * eigenvalues[-1]
    Q = Q[:, seen]
    return U + (E @ GV @ Q / eigenvalues[seen]) @ Q.T * unit


def _without_noise(gram: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Scales (n,) of the inputs and their Gram (n, n) in these scales, with what lies below its
    round-off taken out.

    Scaled to a unit diagonal, round-off is of the order eps √n however far one input is above the
    rest; eigenvalues below 10 eps √n go.  Where a Cholesky factorisation (n³ / 3 operations) shows
    that there are none, no eigenvector is computed.
    """
    scale = gram.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0)
    G = inverse[:, None] * gram * inverse
    G = (G + G.T) / 2
    G.diagonal().fill_(1.0)  # also for a dead input: its scale of 0 takes it out
    least = 10 * eps * math.sqrt(len(G))
    if torch.linalg.cholesky_ex(G - least * torch.eye(len(G)).to(G)).info == 0:
        return scale, G
    eigenvalues, Q = torch.linalg.eigh(G)
    kept = eigenvalues > least
    return scale, (Q[:, kept] * eigenvalues[kept]) @ Q[:, kept].T
