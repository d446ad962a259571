import pytest
import torch

from prehab_lib.fast import polar as polar_module
from prehab_lib.fast.polar import LOW, WAYS, polar, polynomials, quintic
from tests.helpers import cosine, log_spaced


def exact(M):
    U, sigma, Vt = torch.linalg.svd(M.double(), full_matrices=False)
    return U @ Vt, float(sigma.sum())


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (64, 64)])
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e4, 1e6])
def test_value_and_gradient_of_the_nuclear_norm(by, shape, condition):
    M = log_spaced(*shape, condition).float()
    P, norm = exact(M)
    found = polar(M, by)
    assert cosine(found.P, P) > 0.999
    assert float((found.P * M).sum()) == pytest.approx(norm, rel=1e-3)
    assert float(found.defect) < polar_module.TOLERANCE


@pytest.mark.parametrize("by", WAYS)
def test_falling_back_is_needed_and_said(by):
    """Without it the factor of an ill-conditioned matrix is wrong; with it, it is right, and the call says so."""
    M = torch.stack([log_spaced(48, 48, 3.0), log_spaced(48, 48, 1e6)]).float()
    found = polar(M, by)
    assert found.fell_back.tolist() == [False, True] and found.P.dtype == torch.float32
    raw = WAYS[by](M)
    assert cosine(raw[0], exact(M[0])[0]) > 0.9999 and cosine(raw[1], exact(M[1])[0]) < 0.995


def test_one_known_to_need_float64_goes_there_at_once(monkeypatch):
    M = torch.stack([log_spaced(12, 20, 1e6), log_spaced(12, 20, 2.0)]).float()
    tried = []
    monkeypatch.setitem(WAYS, "eigh", lambda given: tried.append(len(given)) or polar_module.by_eigh(given))
    found = polar(M, "eigh", known=torch.tensor([True, False]))
    assert tried == [1] and found.fell_back.tolist() == [True, False]
    torch.testing.assert_close(found.P, polar(M, "eigh").P)


@pytest.mark.parametrize("by", WAYS)
def test_batches_are_their_matrices(by):
    M = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    found = polar(M, by)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(found.P[i, j], polar(M[i, j], by).P, rtol=1e-4, atol=1e-5)
    assert found.defect.shape == found.fell_back.shape == (2, 3)


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_matrix_of_low_rank_has_a_factor_of_that_rank(by, rank):
    generator = torch.Generator().manual_seed(1)
    M = torch.randn(8, rank, generator=generator) @ torch.randn(rank, 6, generator=generator)
    found = polar(M, by)
    norm = torch.linalg.matrix_norm(M, "nuc")
    assert torch.isfinite(found.P).all() and bool(found.fell_back)
    assert float((found.P * M).sum()) == pytest.approx(float(norm), abs=1e-4 * (1 + float(norm)))
    assert float(torch.linalg.matrix_norm(found.P, 2)) < 1 + 1e-4


def test_scale_changes_nothing():
    M = log_spaced(20, 30, 50.0).float()
    for by in WAYS:
        for scale in (1e-6, 1e6):
            torch.testing.assert_close(polar(scale * M, by).P, polar(M, by).P, rtol=1e-3, atol=1e-4)


def test_polynomials_take_the_whole_interval_to_one_even_where_round_off_pushes():
    x = torch.logspace(torch.log10(torch.tensor(LOW)).item(), 0, 2001, dtype=torch.float64)
    x[-1] *= 1 + 5e-7
    for a, b, c in polynomials():
        x = (a * x + b * x**3 + c * x**5) * (1 + 2e-7)
    assert float((x - 1).abs().max()) < 2e-6
    assert len(polynomials()) <= 10


def test_a_quintic_is_the_best_of_its_degree():
    """It errs by ±E at four places, so no odd quintic errs less (Chebyshev); a least-squares one errs more."""
    for low in (1e-3, 0.1, 0.7):
        a, b, c, error = quintic(low)
        x = torch.linspace(low, 1, 100_001, dtype=torch.float64)
        off = 1 - (a * x + b * x**3 + c * x**5)
        assert float(off.abs().max()) == pytest.approx(error, rel=1e-6)
        fit = torch.linalg.lstsq(torch.stack([x, x**3, x**5], 1), torch.ones(len(x), 1, dtype=torch.float64)).solution
        assert float((1 - torch.stack([x, x**3, x**5], 1) @ fit).abs().max()) > error


def test_near_one_a_quintic_is_newton_and_schulz():
    low = 0.9995
    a, b, c, bound = quintic(low)
    x = torch.linspace(low, 1, 1001, dtype=torch.float64)
    off = float((1 - (a * x + b * x**3 + c * x**5)).abs().max())
    assert off <= bound < 1e-9


def test_an_unknown_way_names_the_known_ones():
    with pytest.raises(ValueError, match="by = 'qr' is not known: choose one of eigh, products"):
        polar(torch.eye(2), "qr")
