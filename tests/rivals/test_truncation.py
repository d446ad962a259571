import pytest
import torch

from prehab_lib.rivals.truncation import LIMIT, divided_differences, gate, truncate_smoothly


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def with_spectrum(t: int, m: int, sigma: list, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    """A matrix (t, m) of these singular values."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (
        torch.linalg.qr(torch.randn(size, len(sigma), dtype=torch.float64, generator=generator)).Q for size in (t, m)
    )
    return ((U * torch.tensor(sigma, dtype=torch.float64)) @ V.T).to(dtype)


def scalar(value: float, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def gradients(A, gamma, beta, limit=LIMIT, G=None):
    A, gamma = A.clone().requires_grad_(), scalar(gamma, A.dtype)
    F = truncate_smoothly(A, gamma, beta, limit)
    F.backward(torch.randn(F.shape, generator=torch.Generator().manual_seed(1)).to(F) if G is None else G)
    return A.grad, gamma.grad


shapes = pytest.mark.parametrize(("t", "m"), [(7, 5), (5, 7), (6, 6)], ids=["tall", "wide", "square"])
DISTINCT = [3.0, 2.2, 1.1, 0.6, 0.2]


# The gate


def test_the_gate_is_the_printed_formula_around_the_middle_of_each_component():
    gamma, i = 2.3, torch.arange(6) + 0.5
    T = gate(torch.tensor(gamma), 6, 1.7)
    torch.testing.assert_close(T, 0.5 * torch.tanh(1.7 * (gamma - i)) + 0.5)


def test_the_gate_is_monotone_in_gamma_and_along_the_components():
    T = torch.stack([gate(torch.tensor(g, dtype=torch.float64), 8, 1.0) for g in torch.linspace(-1, 9, 50).tolist()])
    assert (T.diff(dim=0) > 0).all() and (T.diff(dim=1) < 0).all()


@pytest.mark.parametrize("beta", [0.5, 2.0, 10.0])
def test_what_the_gate_lets_through_sums_to_gamma(beta):
    """Exactly at whole and half numbers, and within half a component between them."""
    for gamma, within in ((10.0, 1e-3), (10.5, 1e-3), (10.2, 0.25), (10.8, 0.25)):
        assert float(gate(torch.tensor(gamma, dtype=torch.float64), 21, beta).sum()) == pytest.approx(gamma, abs=within)


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_a_steep_gate_is_hard_truncation(rank):
    A = with_spectrum(7, 5, DISTINCT)
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    hard = U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
    for gamma in (rank, rank + 0.4, rank - 0.4):
        torch.testing.assert_close(truncate_smoothly(A, torch.tensor(gamma), 1e4), hard, rtol=0, atol=1e-12)


def test_a_gate_beyond_the_end_changes_nothing():
    A = with_spectrum(7, 5, DISTINCT)
    torch.testing.assert_close(truncate_smoothly(A, torch.tensor(12.0), 10.0), A, rtol=0, atol=1e-12)


# The gradient


@shapes
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_gradcheck_for_distinct_singular_values(t, m, beta):
    A = with_spectrum(t, m, DISTINCT).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, g: truncate_smoothly(A, g, beta), (A, scalar(2.7)))


@shapes
@pytest.mark.parametrize("gamma", [0.3, 1.6])
def test_gradcheck_for_a_rank_deficient_matrix(t, m, gamma):
    """Two singular values are zero, far on the dropped side."""
    A = with_spectrum(t, m, [3.0, 2.2, 1.1, 0.0, 0.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, g: truncate_smoothly(A, g, 10.0), (A, scalar(gamma)), atol=1e-5)


@shapes
def test_gradcheck_for_a_rank_deficient_matrix_that_is_kept_whole(t, m):
    A = with_spectrum(t, m, [3.0, 2.2, 1.1, 0.0, 0.0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda A: truncate_smoothly(A, torch.tensor(9.0), 10.0), (A,), atol=1e-5)


@shapes
@pytest.mark.parametrize(("sigma", "gamma"), [([4.0, 4.0, 2.0, 1.0, 0.5], 3.5), ([4.0, 3.0, 2.0, 0.7, 0.7], 1.5)])
def test_gradcheck_for_ties_on_one_side_of_the_gate(t, m, sigma, gamma):
    """Both tied components are 2 or more from the gate: their T are 1, or 0, to round-off."""
    A = with_spectrum(t, m, sigma).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, g: truncate_smoothly(A, g, 10.0), (A, scalar(gamma)), atol=1e-5)


def test_equal_singular_values_everywhere_pass_the_gradient_through_where_all_are_kept():
    A = with_spectrum(5, 5, [2.0] * 5)
    G = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(gradients(A, 9.0, 10.0, G=G)[0], G)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-7, 1e-4])
@pytest.mark.parametrize("beta", [1.0, 10.0, 1e4])
def test_a_tie_across_the_gate_is_finite_and_bounded(gap, beta, dtype):
    A = with_spectrum(7, 5, [4.0, 2.0 + gap, 2.0, 1.0, 0.0], dtype=dtype)
    for limit in (10.0, LIMIT):
        along_A, along_gamma = gradients(A, 2.0, beta, limit)
        arrived = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).norm()
        assert torch.isfinite(along_A).all() and torch.isfinite(along_gamma)
        assert float(along_A.norm()) <= (1 + limit) * float(arrived)
    if beta > 1 and gap < 1e-5:
        assert float(along_A.norm()) > 100 * float(
            gradients(A, 2.0, beta, 10.0)[0].norm()
        )  # the bound is what holds it


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.zeros(2, 3, 4)}, r"shape \(2, 3, 4\)"),
        ({"A": torch.full((2, 2), torch.nan)}, "finite matrix"),
        ({"beta": 0.0}, "beta = 0.0"),
        ({"limit": -1}, "limit = -1"),
    ],
)
def test_what_cannot_be_truncated_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        truncate_smoothly(**({"A": torch.eye(3), "gamma": torch.tensor(1.0), "beta": 1.0} | change))


def test_autocast_around_it_changes_nothing():
    torch.manual_seed(0)
    A, gamma = torch.randn(12, 8), torch.tensor(3.0)
    plain = truncate_smoothly(A, gamma, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(truncate_smoothly(A, gamma, 4.0), plain)
