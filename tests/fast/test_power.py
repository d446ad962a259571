import pytest
import torch

from prehab_lib.fast.power import start, top
from tests.helpers import cosine, log_spaced


def test_it_finds_the_top_triple_of_each_matrix_of_a_batch():
    M = torch.stack([log_spaced(30, 50, 10.0), log_spaced(30, 50, 1e4)])
    found = top(M, M, start(M), 60)
    U, sigma, _ = torch.linalg.svd(M)
    torch.testing.assert_close(found.theta, sigma[:, 0] ** 2, rtol=1e-9, atol=0)
    assert cosine(found.U[0, :, 0], U[0, :, 0]) ** 2 > 1 - 1e-9 and float(found.residual.max()) < 1e-4
    torch.testing.assert_close(found.U.mT @ found.U, torch.eye(4).double().expand(2, 4, 4), rtol=0, atol=1e-12)


def test_the_gram_side_is_the_same_without_root_or_product():
    W, L = log_spaced(12, 20, 5.0), log_spaced(20, 20, 100.0)
    M, G = W @ L, L @ L.T
    torch.testing.assert_close(top(W @ G, W, start(W), 3).theta, top(M, M, start(M), 3).theta, rtol=1e-10, atol=0)


def test_it_never_overestimates_a_warm_start_goes_on_and_the_residual_bounds_the_error():
    M = log_spaced(50, 60, 30.0)
    eigenvalues = torch.linalg.svdvals(M) ** 2
    found = [top(M, M, start(M), rounds) for rounds in (1, 2, 4, 8)]
    values = [float(one.theta) for one in found]
    assert values == sorted(values) and values[-1] <= float(eigenvalues[0]) * (1 + 1e-12)
    for one in found:
        assert float((eigenvalues / one.theta - 1).abs().min()) <= float(one.residual)
    torch.testing.assert_close(top(M, M, found[2].U, 4).theta, found[3].theta)


def test_small_matrices_have_fewer_columns_and_a_zero_matrix_is_no_failure():
    for shape in ((1, 5), (3, 2), (2, 7)):
        M = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        best = float(torch.linalg.svdvals(M)[0])
        assert float(top(M, M, start(M), 100).theta.sqrt()) == pytest.approx(best, rel=1e-6), shape
    found = top(torch.zeros(4, 6), torch.zeros(4, 6), start(torch.zeros(4, 6)), 2)
    assert float(found.theta) == 0 and float(found.residual) == 0 and torch.isfinite(found.U).all()
