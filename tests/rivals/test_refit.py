import numpy as np
import pytest
import torch

from prehab_lib.rivals.refit import refit
from prehab_lib.weightings import decompose
from tests.helpers import layer, skewed


def factors(rows: int, rank: int = 5):
    """W (16, 12), U and V of another ruler than the Gram's, the Gram, and its inputs (rows, 12)."""
    W, X = layer(16, 12, 300)[0], skewed(rows, 12, seed=5)
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return W, U[:, :rank] * s[:rank], Vt[:rank], X.T @ X / rows, X


def numpys(X, W, V) -> np.ndarray:
    """U' (16, r) by another route: least squares of X Wᵀ on X Vᵀ."""
    return np.linalg.lstsq((X @ V.T).numpy(), (X @ W.T).numpy(), rcond=None)[0].T


def loss(X, W, U, V) -> float:
    return float((X @ (W - U @ V).T).square().sum())


def test_refit_is_least_squares():
    W, U, V, gram, X = factors(rows=200)
    np.testing.assert_allclose(refit(W, U, V, gram).numpy(), numpys(X, W, V), rtol=1e-8)
    assert loss(X, W, refit(W, U, V, gram), V) < 0.9 * loss(X, W, U, V)


def test_refit_leaves_the_best_factors_alone():
    W, stats, _ = layer(16, 12, 300)
    best = decompose(W, stats, "gram").truncate(5).balanced()
    torch.testing.assert_close(refit(W, best.U, best.V, stats.gram), best.U, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_tokens_than_ranks_move_only_what_they_show(rows):
    W, U, V, gram, X = factors(rows)
    new = refit(W, U, V, gram)
    assert torch.isfinite(new).all()
    assert loss(X, W, new, V) <= 1e-12 * loss(X, W, U, V)  # as many unknowns as there are tokens: they are met
    assert int(torch.linalg.matrix_rank(new - U)) == rows


def test_dead_directions_keep_their_u():
    W, U, V, gram, _ = factors(rows=200)
    V = torch.cat([V[:3], torch.zeros(1, 12), V[4:]])
    gram[2] = gram[:, 2] = 0
    new = refit(W, U, V, gram)
    assert torch.equal(new[:, 3], U[:, 3]) and torch.isfinite(new).all()
    assert torch.equal(refit(W, U, V, torch.zeros(12, 12, dtype=torch.float64)), U)


@pytest.mark.parametrize("outlier", [1, 3000])
@pytest.mark.parametrize("rows", [3, 40, 3000])
def test_round_off_of_a_float32_gram_is_not_taken_for_data(rows, outlier):
    """Gram from float32 products, with and without a channel far above the rest: close to the exact answer all the same."""
    W, U, V, _, X = factors(rows, rank=6)
    X[:, 0] *= outlier
    X32 = X.float()
    exact = refit(W, U, V, X.T @ X / rows)
    new = refit(W, U, V, (X32.T @ X32).double() / rows, eps=torch.finfo(torch.float32).eps)
    assert (new - exact).norm() < 1e-4 * (exact - U).norm()
    assert loss(X, W, new, V) <= (1 + 1e-6) * loss(X, W, exact, V) + 1e-12 * loss(X, W, U, V)


@pytest.mark.parametrize("by", [1e-8, 1e8])
def test_scale_of_the_gram_changes_nothing(by):
    W, U, V, gram, _ = factors(rows=200)
    torch.testing.assert_close(refit(W, U, V, by * gram), refit(W, U, V, gram), rtol=1e-9, atol=1e-9)


def test_how_a_product_is_split_changes_nothing():
    W, U, V, gram, _ = factors(rows=200)
    split = torch.logspace(-5, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(refit(W, U * split, V / split[:, None], gram) / split, refit(W, U, V, gram))
