import pytest
import torch

from prehab_lib.fast.polar import POLYNOMIALS, TOLERANCE, _defect, by_eigh, by_products, polar
from tests.helpers import cosine, log_spaced

WAYS = pytest.mark.parametrize("way", [by_eigh, by_products])


def exact(M):
    U, sigma, Vt = torch.linalg.svd(M.double(), full_matrices=False)
    return U @ Vt, float(sigma.sum())


@WAYS
def test_value_and_gradient_of_the_nuclear_norm(way):
    for shape in ((24, 40), (40, 24), (64, 64)):
        for condition in (1e0, 1e2, 1e4, 1e6):
            M = log_spaced(*shape, condition).float()
            P, norm = exact(M)
            ours = polar(M, way=way).P
            assert cosine(ours, P) > 0.999, (shape, condition)
            assert float((ours * M).sum()) == pytest.approx(norm, rel=1e-3), (shape, condition)
            assert float(_defect(ours)) < TOLERANCE, (shape, condition)


@WAYS
def test_falling_back_is_needed_and_said(way):
    """Without it the factor of an ill-conditioned matrix is wrong; with it, it is right, and the call says so."""
    M = torch.stack([log_spaced(48, 48, 3.0), log_spaced(48, 48, 1e6)]).float()
    factor = polar(M, way=way)
    assert factor.fell_back.tolist() == [False, True] and factor.P.dtype == torch.float32
    raw = way(M)
    assert cosine(raw[0], exact(M[0])[0]) > 0.9999 and cosine(raw[1], exact(M[1])[0]) < 0.995


def test_one_known_to_need_float64_goes_there_at_once():
    M = torch.stack([log_spaced(12, 20, 1e6), log_spaced(12, 20, 2.0)]).float()
    tried = []
    factor = polar(M, torch.tensor([True, False]), lambda some: tried.append(len(some)) or by_eigh(some))
    assert tried == [1] and factor.fell_back.tolist() == [True, False]
    torch.testing.assert_close(factor.P, polar(M).P)


@WAYS
def test_batches_are_their_matrices_and_scale_changes_nothing(way):
    M = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    factor = polar(M, way=way)
    assert factor.fell_back.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(factor.P[i, j], polar(M[i, j], way=way).P, rtol=1e-4, atol=1e-5)
    M = log_spaced(20, 30, 50.0).float()
    for scale in (1e-6, 1e6):
        torch.testing.assert_close(polar(scale * M, way=way).P, polar(M, way=way).P, rtol=1e-3, atol=1e-4)


@WAYS
def test_a_matrix_of_low_rank_has_a_factor_of_that_rank(way):
    generator = torch.Generator().manual_seed(1)
    for rank in (0, 1, 3):
        M = torch.randn(8, rank, generator=generator) @ torch.randn(rank, 6, generator=generator)
        factor, norm = polar(M, way=way), float(torch.linalg.matrix_norm(M, "nuc"))
        assert torch.isfinite(factor.P).all() and bool(factor.fell_back), rank
        assert float((factor.P * M).sum()) == pytest.approx(norm, abs=1e-4 * (1 + norm)), rank
        assert float(torch.linalg.matrix_norm(factor.P, 2)) < 1 + 1e-4, rank


def test_polynomials_take_the_whole_interval_to_one_even_where_round_off_pushes():
    x = torch.logspace(-5, 0, 2001, dtype=torch.float64)
    x[-1] *= 1 + 5e-7
    for a, b, c in POLYNOMIALS:
        x = (a * x + b * x**3 + c * x**5) * (1 + 2e-7)
    assert float((x - 1).abs().max()) < 2e-6
