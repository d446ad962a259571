"""Exercises of notebooks 02 and 02b: a tolerance, a shared factor, a new ruler, a bias."""

import math
from fractions import Fraction

import torch


def rank_at(m, n, share, rounding=math.floor, least=1):
    """share: of the weights, that is kept."""
    return max(least, rounding(share * m * n / (m + n)))


def exact(removed):
    return Fraction(str(removed))


def tails(s, power=2):
    """Σ_{i≥r} s_i^power for r = 0 … k."""
    return [float((s[r:] ** power).sum()) for r in range(len(s) + 1)]


def first(shares, limit):
    """The first rank that loses at most `limit`."""
    return next(rank for rank, share in enumerate(shares) if share <= limit)


def weighted(X, w):
    """Mean of w_t x_t x_tᵀ."""
    return (X.T * w) @ X / len(X)


def by_bias(W, G, mean, rank, sign=1, last=True):
    """The cut by a Gram, and what the bias takes up."""
    vectors = torch.linalg.eigh(W @ G @ W.T).eigenvectors  # eigenvalues ascend
    U = vectors[:, -rank:] if last else vectors[:, :rank]
    W_hat = U @ U.T @ W
    return W_hat, sign * (W - W_hat) @ mean


def pseudo_inverse(W, G, mean, rank):
    values, Q = torch.linalg.eigh(G)
    seen = Q[:, values > 1e-9 * values[-1]]
    W_hat = by_bias(W, G, mean, rank)[0] @ seen @ seen.T
    return W_hat, (W - W_hat) @ mean
