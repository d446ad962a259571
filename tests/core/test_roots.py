import pytest
import torch

from prehab_lib.roots import ROWS, checked_gram, invertible_root, psd_eigen, psd_root
from tests.helpers import layer


def test_root_of_a_singular_gram():
    _, stats, _ = layer(8, 12, 5)
    L = psd_root(stats.gram)
    torch.testing.assert_close(L @ L.T, stats.gram, rtol=1e-9, atol=1e-9 * float(stats.gram.max()))
    assert int((L.norm(dim=0) > 0).sum()) == 5
    assert int((psd_eigen(stats.gram)[0] > 0).sum()) == 5


@pytest.mark.parametrize("root", [psd_root, psd_eigen, invertible_root])
def test_a_gram_that_is_none_is_refused(root):
    bad = {"square": torch.zeros(2, 3), "NaN": torch.full((2, 2), float("nan")), "symmetric": torch.eye(2).cumsum(1)}
    for message, matrix in bad.items():
        with pytest.raises(ValueError, match=message):
            root(matrix)


@pytest.mark.parametrize("place", [(0, 1), (1, 0), (0, -1), (-1, 0), (ROWS - 1, ROWS), (-1, -2), (-2, -1)])
def test_one_wrong_entry_anywhere_is_seen_and_round_off_is_not(place):
    """Two blocks of rows and a rest; only what differs from its mirror image by 2e-6 of the largest entry is refused."""
    X = torch.randn(300, 2 * ROWS + 5, dtype=torch.float64)
    A = X.T @ X
    largest = float(A.max())
    A[place] += 1e-6 * largest
    assert torch.equal(checked_gram(A), (A + A.T) / 2)
    A[place] += 2e-6 * largest
    with pytest.raises(ValueError, match="symmetric"):
        checked_gram(A)


def test_both_roots_are_roots_and_each_is_taken_where_it_is_safe():
    _, stats, _ = layer(8, 12, 400)
    L = psd_root(stats.gram)
    assert torch.equal(L, L.tril()) and torch.equal(L, torch.linalg.cholesky(stats.gram))
    nearly = stats.gram - 0.999999999999 * torch.linalg.eigvalsh(stats.gram)[0] * torch.eye(12)
    for gram in (stats.gram, nearly):
        root = psd_root(gram)
        torch.testing.assert_close(root @ root.T, gram, rtol=0, atol=1e-12 * float(gram.max()))
    assert not torch.equal(psd_root(nearly), psd_root(nearly).tril())


def test_an_invertible_root_adds_the_least_ridge_that_works():
    for tokens, ridge in ((400, 0.0), (5, 1e-6)):  # none where A is safe
        A = layer(8, 12, tokens)[1].gram
        L = invertible_root(A)
        expected = A + ridge * A.diagonal().mean() * torch.eye(12, dtype=torch.float64)
        torch.testing.assert_close(L @ L.T, expected, rtol=1e-12, atol=1e-12 * float(A.max()))
    slightly_negative = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1e-4], dtype=torch.float64))
    L = invertible_root(slightly_negative)
    mean = slightly_negative.diagonal().mean()
    assert (L @ L.T - slightly_negative).diagonal()[0] == pytest.approx(1e-3 * float(mean), rel=1e-6)


def test_the_root_of_nothing_is_the_identity_and_a_negative_matrix_is_refused():
    assert torch.equal(invertible_root(torch.zeros(3, 3)), torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="no second moment"):
        invertible_root(torch.diag(torch.tensor([2.0, -1.0])))
