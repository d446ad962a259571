"""Smooth truncation of a matrix and its gradient: against gradcheck, autograd through the SVD, and at ties."""

import itertools

import pytest
import torch

from prehab_lib.rivals import dobi
from prehab_lib.rivals.dobi import LIMIT, divided_differences, truncate_smoothly
from prehab_lib.rivals.gates import gate

DISTINCT = [3.0, 2.2, 1.1, 0.6, 0.2]
SHAPES = [(7, 5), (5, 7), (6, 6)]  # tall, wide, square


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def with_spectrum(t: int, m: int, sigma: list, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """A matrix (t, m) of these singular values."""
    generator = torch.Generator().manual_seed(seed)
    draw = dict(dtype=torch.float64, generator=generator)
    U, V = (torch.linalg.qr(torch.randn(size, len(sigma), **draw)).Q for size in (t, m))
    return ((U * torch.tensor(sigma, dtype=torch.float64)) @ V.T).to(dtype)


def scalar(value: float, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def gradients(A, gamma, beta, G=None):
    A, gamma = A.clone().requires_grad_(), scalar(gamma, A.dtype)
    F = truncate_smoothly(A, gamma, beta)
    F.backward(torch.randn(F.shape, generator=torch.Generator().manual_seed(1)).to(F) if G is None else G)
    return A.grad, gamma.grad


def test_a_steep_gate_is_hard_truncation():
    A = with_spectrum(7, 5, DISTINCT)
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    for rank, beside in itertools.product((0, 1, 3, 5), (0, 0.4, -0.4)):
        hard = U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
        F = truncate_smoothly(A, torch.tensor(rank + beside), 1e4)
        torch.testing.assert_close(F, hard, rtol=0, atol=1e-12, msg=f"rank {rank}, {beside} beside it")
    torch.testing.assert_close(truncate_smoothly(A, torch.tensor(12.0), 10.0), A, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("t", "m"), SHAPES)
@pytest.mark.parametrize(
    ("sigma", "gamma", "beta"),
    [
        (DISTINCT, 2.7, 1.0),
        (DISTINCT, 2.7, 4.0),
        ([3.0, 2.2, 1.1, 0.0, 0.0], 0.3, 10.0),  # rank-deficient, its zeros far on the dropped side
        ([3.0, 2.2, 1.1, 0.0, 0.0], 1.6, 10.0),
        ([3.0, 2.2, 1.1, 0.0, 0.0], 9.0, 10.0),  # and kept whole
        ([4.0, 4.0, 2.0, 1.0, 0.5], 3.5, 10.0),  # a tie on the kept side, 2 or more from the gate
        ([4.0, 3.0, 2.0, 0.7, 0.7], 1.5, 10.0),  # and on the dropped side
    ],
)
def test_gradcheck(t, m, sigma, gamma, beta):
    A = with_spectrum(t, m, sigma).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, g: truncate_smoothly(A, g, beta), (A, scalar(gamma)), atol=1e-5)


def test_equal_singular_values_everywhere_pass_the_gradient_through_where_all_are_kept():
    A = with_spectrum(5, 5, [2.0] * 5)
    G = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(gradients(A, 9.0, 10.0, G=G)[0], G)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [1.0, 10.0, 1e4])
def test_a_tie_across_the_gate_is_finite_and_bounded(beta, dtype, monkeypatch):
    arrived = float(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).norm())
    for gap in (0.0, 1e-14, 1e-7, 1e-4):
        A, sizes = with_spectrum(7, 5, [4.0, 2.0 + gap, 2.0, 1.0, 0.0], dtype=dtype), []
        for limit in (10.0, LIMIT):
            monkeypatch.setattr(dobi, "LIMIT", limit)
            along_A, along_gamma = gradients(A, 2.0, beta)
            assert torch.isfinite(along_A).all() and torch.isfinite(along_gamma), gap
            sizes.append(float(along_A.norm()))
            assert sizes[-1] <= (1 + limit) * arrived, gap
        if beta > 1 and gap < 1e-5:
            assert sizes[1] > 100 * sizes[0], gap  # the bound is what holds it


def test_the_zero_matrix_has_finite_gradients():
    along_A, along_gamma = gradients(torch.zeros(4, 3, dtype=torch.float64), 1.5, 10.0)
    assert torch.isfinite(along_A).all() and float(along_gamma) == 0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_gradient_has_no_unit(scale):
    """Relative tests throughout: what holds for A holds for A in other units, also where σ nearly tie."""
    A = with_spectrum(6, 5, [4.0, 2.0 + 1e-5, 2.0, 1.0, 0.0])
    torch.testing.assert_close(gradients(scale * A, 2.0, 3.0)[0], gradients(A, 2.0, 3.0)[0], rtol=1e-4, atol=1e-6)


def test_divided_differences_by_hand():
    """d = (2, 1 · ¼) of σ = (2, 1), T = (1, ¼): Ω⁺ = 7/4 and Ω⁻ = 9/12 off the diagonal, T on it."""
    symmetric, skew = divided_differences(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.25]))
    torch.testing.assert_close(symmetric, torch.tensor([[1.0, 1.75], [1.75, 0.25]]))
    torch.testing.assert_close(skew, torch.tensor([[1.0, 0.75], [0.75, 0.25]]))


def test_gradients_agree_with_autograd_through_the_svd():
    A = with_spectrum(7, 5, DISTINCT)
    G = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    through, gamma = A.clone().requires_grad_(), scalar(2.4)
    U, s, Vh = torch.linalg.svd(through, full_matrices=False)
    ((U * (s * gate(gamma, 5, 2.0))) @ Vh).backward(G)
    along_A, along_gamma = gradients(A, 2.4, 2.0, G=G)
    torch.testing.assert_close(along_A, through.grad)
    torch.testing.assert_close(along_gamma, gamma.grad)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_lower_precisions_agree_with_float64(dtype, tolerance):
    A = with_spectrum(7, 5, DISTINCT)
    G = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = gradients(A.to(dtype), 2.5, 2.0, G=G.to(dtype))
    assert found[0].dtype == found[1].dtype == dtype
    for ours, exact in zip(found, gradients(A, 2.5, 2.0, G=G), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=tolerance, atol=tolerance)


def test_autocast_changes_nothing_and_nan_is_refused():
    torch.manual_seed(0)
    A, gamma = torch.randn(12, 8), torch.tensor(3.0)
    plain = truncate_smoothly(A, gamma, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(truncate_smoothly(A, gamma, 4.0), plain)
    with pytest.raises(ValueError, match=r"activations of shape \(2, 2\) have NaN"):
        truncate_smoothly(torch.full((2, 2), torch.nan), gamma, 1.0)
