"""Exercises of notebook 02, rulers: tail errors, ranks, a Fisher ruler, no inverse."""

import math
from fractions import Fraction

import torch


def rank_at(m, n, share, rounding=math.floor, least=1):
    """share: of the weights, that is kept."""
    return max(least, rounding(share * m * n / (m + n)))


def exact(removed):
    return Fraction(str(removed))


def projected(W, M, rank):
    """W in the span of the first left vectors of M."""
    U = torch.linalg.svd(M, full_matrices=False).U[:, :rank]
    return U @ U.T @ W


def root(G):
    eigenvalues, Q = torch.linalg.eigh(G)
    return Q * eigenvalues.clamp_min(0).sqrt()


def still_weighted(W, L, rank):
    return projected(W, W @ L, rank) @ L


def repair(W, G, rank):
    """Cholesky with an amount on the diagonal that ignores the Gram's scale; then the inverse."""
    lowest = torch.linalg.eigvalsh(G)[0]
    L = torch.linalg.cholesky(G + (1e-6 - lowest) * torch.eye(len(G), dtype=G.dtype))
    return still_weighted(W, L, rank) @ torch.linalg.inv(L)


def smallest_first(W, G, rank):
    U = torch.linalg.eigh(W @ G @ W.T).eigenvectors[:, :rank]
    return U @ U.T @ W


def projected_inputs(W, G, rank):
    V = torch.linalg.svd(W @ root(G), full_matrices=False).Vh[:rank].T
    return W @ V @ V.T
