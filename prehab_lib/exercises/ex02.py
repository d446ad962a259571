"""Exercises of notebook 02, rulers: tail errors, ranks, a Fisher ruler, no inverse."""

import math
from fractions import Fraction

import torch

from prehab_lib.exercises import load, tensors


def _rank(m, n, share, rounding=math.floor, least=1):
    """share: of the weights, that is kept."""
    return max(least, rounding(share * m * n / (m + n)))


def _exact(removed):
    return Fraction(str(removed))


def _projected(W, M, rank):
    """W in the span of the first left vectors of M."""
    U = torch.linalg.svd(M, full_matrices=False).U[:, :rank]
    return U @ U.T @ W


def _root(G):
    eigenvalues, Q = torch.linalg.eigh(G)
    return Q * eigenvalues.clamp_min(0).sqrt()


def _symmetric_root(G):
    return _root(G) @ torch.linalg.eigh(G).eigenvectors.T


def _still_weighted(W, G, rank, root=_root):
    L = root(G)
    return _projected(W, W @ L, rank) @ L


def _repair(W, G, rank):
    """Cholesky with an amount on the diagonal that ignores the Gram's scale; then the inverse."""
    lowest = torch.linalg.eigvalsh(G)[0]
    L = torch.linalg.cholesky(G + (1e-6 - lowest) * torch.eye(len(G), dtype=G.dtype))
    return _projected(W, W @ L, rank) @ L @ torch.linalg.inv(L)


def _smallest_first(W, G, rank):
    U = torch.linalg.eigh(W @ G @ W.T).eigenvectors[:, :rank]
    return U @ U.T @ W


def _projected_inputs(W, G, rank):
    V = torch.linalg.svd(W @ _root(G), full_matrices=False).Vh[:rank].T
    return W @ V @ V.T


ANSWERS = {
    "2.1": dict(
        arguments=tensors,
        solution=lambda s, rank: s[rank:].square().sum().sqrt(),
        squared_error=lambda s, rank: s[rank:].square().sum(),
        plain_sum=lambda s, rank: s[rank:].sum(),
        what_was_kept=lambda s, rank: s[:rank].square().sum().sqrt(),
        one_too_many=lambda s, rank: s[rank - 1 :].square().sum().sqrt(),
        spectral_error=lambda s, rank: s[rank] if rank < len(s) else s.new_zeros(()),
    ),
    "2.2": dict(
        solution=lambda m, n, removed: _rank(m, n, 1 - _exact(removed)),
        rounded_up=lambda m, n, removed: _rank(m, n, 1 - _exact(removed), math.ceil),
        rank_of_removed=lambda m, n, removed: _rank(m, n, _exact(removed)),
        share_of_rank=lambda m, n, removed: max(1, math.floor((1 - _exact(removed)) * min(m, n))),
        in_binary=lambda m, n, removed: _rank(m, n, 1 - removed),
        in_binary_and_zero=lambda m, n, removed: int((1 - removed) * m * n / (m + n)),
        rank_zero=lambda m, n, removed: _rank(m, n, 1 - _exact(removed), least=0),
    ),
    "2.3": dict(
        arguments=tensors,
        solution=lambda gradients: gradients.square().mean(0).sum(0).sqrt(),
        averaged_first=lambda gradients: gradients.mean(0).square().sum(0).sqrt(),
        weight_per_output=lambda gradients: gradients.square().mean(0).sum(1).sqrt(),
        without_root=lambda gradients: gradients.square().mean(0).sum(0),
        sum_over_samples=lambda gradients: gradients.square().sum(0).sum(0).sqrt(),
        absolute_values=lambda gradients: gradients.abs().mean(0).sum(0),
    ),
    "2.4": dict(
        arguments=tensors,
        solution=lambda W, G, rank: _projected(W, W @ _root(G), rank),
        pseudo_inverse=lambda W, G, rank: _still_weighted(W, G, rank) @ torch.linalg.pinv(_root(G)),
        repair=_repair,
        still_weighted=_still_weighted,
        still_in_symmetric_root=lambda W, G, rank: _still_weighted(W, G, rank, _symmetric_root),
        smallest_first=_smallest_first,
        gram_for_its_root=lambda W, G, rank: _projected(W, W @ G, rank),
        plain_svd=lambda W, G, rank: _projected(W, W, rank),
        projected_inputs=_projected_inputs,
    ),
}
EXERCISES = load("ex02.yaml", ANSWERS)
