"""Exercises of notebook 02, rulers: tail errors, ranks for a budget, a Fisher ruler, and a cut
without an inverse.
"""

import math
from fractions import Fraction

import torch

from prehab_lib.exercises import Exercise, slips


def _tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 2.2: the rank that a budget allows


def _rank(
    m, n, removed, kept=lambda removed: 1 - Fraction(str(removed)), round_=math.floor, least=1
):
    return max(least, round_(kept(removed) * m * n / (m + n)))


def _rank_of_removed_share(m, n, removed):
    return _rank(m, n, removed, kept=lambda removed: Fraction(str(removed)))


def _rank_of_singular_values(m, n, removed):
    return max(1, math.floor((1 - Fraction(str(removed))) * min(m, n)))


# 2.3: FWSVD's ruler from per-sample gradients


def _fisher_root(gradients):
    return gradients.square().mean(0).sum(0).sqrt()


# 2.4: the best output under a singular Gram


def _left_vectors(M, rank):
    return torch.linalg.svd(M, full_matrices=False).U[:, :rank]


def _projection(W, G, rank):
    U = _left_vectors(W @ _root(G), rank)
    return U @ U.T @ W


def _root(G):
    eigenvalues, Q = torch.linalg.eigh(G)
    return Q * eigenvalues.clamp_min(0).sqrt()


def _pseudo_inverse(W, G, rank):
    L = _root(G)
    U = _left_vectors(W @ L, rank)
    return U @ U.T @ W @ L @ torch.linalg.pinv(L)


def _repair(W, G, rank):
    """Enough on the diagonal for Cholesky, an amount that knows nothing of the Gram's scale; then
    the inverse.
    """
    lowest = torch.linalg.eigvalsh(G)[0]
    L = torch.linalg.cholesky(G + (1e-6 - lowest) * torch.eye(len(G), dtype=G.dtype))
    U = _left_vectors(W @ L, rank)
    return U @ U.T @ W @ L @ torch.linalg.inv(L)


def _still_weighted(W, G, rank, root=_root):
    L = root(G)
    U = _left_vectors(W @ L, rank)
    return U @ U.T @ W @ L


def _symmetric_root(G):
    eigenvalues, Q = torch.linalg.eigh(G)
    return Q * eigenvalues.clamp_min(0).sqrt() @ Q.T


def _smallest_first(W, G, rank):
    U = torch.linalg.eigh(W @ G @ W.T).eigenvectors[:, :rank]
    return U @ U.T @ W


def _gram_for_its_root(W, G, rank):
    U = _left_vectors(W @ G, rank)
    return U @ U.T @ W


def _plain(W, G, rank):
    U = _left_vectors(W, rank)
    return U @ U.T @ W


def _projected_inputs(W, G, rank):
    V = torch.linalg.svd(W @ _root(G), full_matrices=False).Vh[:rank].T
    return W @ V @ V.T


GRADIENTS = [
    _tensor([[[3, 0, 1], [0, 4, 1]], [[1, 2, -1], [-2, 0, 1]]]),
    _tensor([[[1, 2], [0, 1], [2, 2]], [[-1, 2], [2, 0], [0, 1]], [[1, 0], [1, 1], [3, 0]]]),
]
WEIGHTS = [  # singular Grams; the last is as small as that of quiet activations
    (_tensor([[3, 0, 0], [0, 2, 0], [0, 0, 1]]), _tensor([[1, 0, 0], [0, 4, 0], [0, 0, 0]]), 1),
    (
        _tensor([[2, 1, 0], [0, 1, 1], [1, 0, 2], [1, 1, 1]]),
        _tensor([[2, 1, 1], [1, 5, -4], [1, -4, 5]]),
        2,
    ),
    (_tensor([[1, 2, 0], [3, 1, 1]]), 1e-8 * _tensor([[2, 1, 1], [1, 5, -4], [1, -4, 5]]), 1),
]

EXERCISES = {
    "2.1": Exercise(
        cases=[(_tensor([12, 4, 3]), 1), (_tensor([5, 4, 3, 0]), 2), (_tensor([2, 1]), 2)],
        withheld=[(_tensor([9, 6, 2, 1]), 1), (_tensor([3, 3, 3]), 2)],
        solution=lambda s, rank: s[rank:].square().sum().sqrt(),
        slips=slips(
            lambda s, rank: s[rank:].square().sum(),
            "that is the squared error: the Frobenius norm is its root",
            lambda s, rank: s[rank:].sum(),
            "squares add up, not lengths: (4, 3) makes 5, as in the right triangle",
            lambda s, rank: s[:rank].square().sum().sqrt(),
            "that is what was kept: the error is what was dropped",
            lambda s, rank: s[rank - 1 :].square().sum().sqrt(),
            "one too many: Python counts from 0, and index `rank` is the first that goes",
            lambda s, rank: s[rank] if rank < len(s) else s.new_zeros(()),
            "that is the spectral error, the largest dropped: the Frobenius norm adds up all",
        ),
    ),
    "2.2": Exercise(
        cases=[(768, 768, 0.4), (3072, 768, 0.4), (20, 20, 0.8), (4, 4, 0.9)],
        withheld=[(1024, 4096, 0.3), (40, 40, 0.9), (3, 5, 0.95)],
        solution=_rank,
        slips=slips(
            lambda m, n, removed: _rank(m, n, removed, round_=math.ceil),
            "rounded up: then the factors hold more than the budget",
            _rank_of_removed_share,
            "that keeps the share that should go: `removed` is taken away",
            _rank_of_singular_values,
            "that is a share of the singular values: a rank costs m + n numbers",
            lambda m, n, removed: _rank(m, n, removed, kept=lambda removed: 1 - removed),
            "1 - 0.8 is below 0.2 in binary, floor falls one short: use Fraction(str(removed))",
            lambda m, n, removed: int((1 - removed) * m * n / (m + n)),
            "two slips: 1 - 0.8 is below 0.2 in binary, and the smallest rank is 1, not 0",
            lambda m, n, removed: _rank(m, n, removed, least=0),
            "a layer of rank 0 passes nothing on: the smallest rank is 1",
        ),
    ),
    "2.3": Exercise(
        cases=[(gradients,) for gradients in GRADIENTS],
        withheld=[(_tensor([[[1, -2], [2, 0]], [[3, 1], [0, 1]], [[-1, 1], [1, 2]]]),)],
        solution=_fisher_root,
        slips=slips(
            lambda gradients: gradients.mean(0).square().sum(0).sqrt(),
            "square before averaging: gradients cancel in a mean, their information does not",
            lambda gradients: gradients.square().mean(0).sum(1).sqrt(),
            "that is one weight per output: FWSVD scales the inputs, so add over the rows of W",
            lambda gradients: gradients.square().mean(0).sum(0),
            "that is f itself: the kernel squares ‖E Q‖, so Q holds its root",
            lambda gradients: gradients.square().sum(0).sum(0).sqrt(),
            "that is a sum over samples: Fisher information is their mean",
            lambda gradients: gradients.abs().mean(0).sum(0),
            "Fisher information is a mean of squares, not of absolute values",
        ),
    ),
    "2.4": Exercise(
        cases=WEIGHTS,
        withheld=[(_tensor([[1, 0, 2], [0, 3, 1]]), _tensor([[2, 0, 1], [0, 0, 0], [1, 0, 1]]), 1)],
        solution=_projection,
        slips=slips(
            _pseudo_inverse,
            "that is the pseudo-inverse, which sets to zero what no data showed: project W itself",
            _repair,
            "an inverse after all, and the fixed amount drowns a quiet Gram: project W itself",
            _still_weighted,
            "that is W L truncated, the ruler still in it: the cut is U_r U_rᵀ W, of W itself",
            lambda W, G, rank: _still_weighted(W, G, rank, _symmetric_root),
            "that is W L truncated, its symmetric root still in it: project W itself",
            _smallest_first,
            "eigh counts upwards: its first vectors are those that carry least, take the last",
            _gram_for_its_root,
            "the ruler is W L with L Lᵀ = G: W G weighs every direction twice",
            _plain,
            "that is plain SVD: the Gram is not in it",
            _projected_inputs,
            "that projects the inputs: right vectors of W L live in whitened coordinates",
        ),
    ),
}
