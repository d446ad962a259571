import math

import pytest
import torch

from prehab_lib.surrogates import SURROGATES, nuclear, nuclear_ratio, power_iteration, stable_rank

RATIOS = ("nuclear_ratio", "stable_rank", "entropy_rank")  # invariant to scale


def matrix(m=7, n=5, seed=0):
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_singular_values(sigma, m=7, n=6):
    U, V = torch.linalg.qr(matrix(m, m)).Q, torch.linalg.qr(matrix(n, n, 1)).Q
    return U[:, : len(sigma)] @ torch.diag(torch.tensor(sigma, dtype=torch.float64)) @ V[:, : len(sigma)].T


def test_by_hand_on_diag_2_1():
    M = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    entropy = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    expected = {"nuclear": 3, "nuclear_ratio": 9 / 5, "stable_rank": 5 / 4, "entropy_rank": entropy}
    assert {name: pytest.approx(float(f(M))) for name, f in SURROGATES.items()} == expected


@pytest.mark.parametrize("name", SURROGATES)
def test_gradient_also_at_ties_rank_deficiency_and_zero(name):
    for shape in ((7, 5), (5, 7), (4, 4)):
        assert torch.autograd.gradcheck(SURROGATES[name], (matrix(*shape).requires_grad_(),), eps=1e-6, atol=1e-7)
    for sigma in ([3.0, 3.0, 1.0], [2.0, 1.0, 0.0, 0.0], [0.0]):
        M = with_singular_values(sigma).requires_grad_()
        value = SURROGATES[name](M)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(M.grad).all(), sigma


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_see_the_shape_of_the_spectrum_only(name):
    M = matrix().requires_grad_()
    value = SURROGATES[name](M)
    (grad,) = torch.autograd.grad(value, M)
    assert float((grad * M.detach()).sum()) == pytest.approx(0, abs=1e-12)
    big = (10 * M).detach().requires_grad_()
    value_big = SURROGATES[name](big)
    (grad_big,) = torch.autograd.grad(value_big, big)
    torch.testing.assert_close(value_big, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad_big, grad / 10)
    assert float(SURROGATES[name](with_singular_values([3.0]))) == pytest.approx(1, rel=1e-6)
    assert float(SURROGATES[name](with_singular_values([2.0] * 4))) == pytest.approx(4, rel=1e-6)


def test_order_of_the_surrogates():
    for seed in range(20):
        M = matrix(seed=seed)
        sigma = torch.linalg.svdvals(M)
        chain = [1.0, float(stable_rank(M)), float(sigma.sum() / sigma[0]), float(nuclear_ratio(M)), 5.0]
        assert chain == sorted(chain), seed


def test_closed_form_of_equation_5_and_the_printed_equation_6_is_not_it():
    W, X = matrix(6, 5), torch.linalg.cholesky(torch.cov(matrix(5, 40, 2)))
    W.requires_grad_()
    M = W @ X
    (truth,) = torch.autograd.grad(nuclear_ratio(M), W)
    U, s, Vt = torch.linalg.svd(M.detach(), full_matrices=False)
    S, fro2 = s.sum() ** 2 / (s @ s), s @ s
    closed = 2 / fro2 * (s.sum() * U @ Vt - S * M.detach()) @ X.T
    printed = 2 * M.detach() @ (torch.diag(s) / fro2 - S * torch.eye(5, dtype=torch.float64)) @ X.T
    torch.testing.assert_close(closed, truth, rtol=1e-10, atol=1e-12)
    assert (printed - truth).norm() > truth.norm()
    assert abs(float((printed * W.detach()).sum())) > 1
    assert float((closed * W.detach()).sum()) == pytest.approx(0, abs=1e-12)


def test_closed_forms_of_the_nuclear_norm_and_the_released_stable_rank():
    M = matrix().requires_grad_()
    U, s, Vt = torch.linalg.svd(M.detach(), full_matrices=False)
    (slope,) = torch.autograd.grad(nuclear(M), M)
    torch.testing.assert_close(slope, U @ Vt)
    (slope,) = torch.autograd.grad(stable_rank(M), M)
    closed = 2 / s[0] ** 2 * (M.detach() - (s @ s) / s[0] * torch.outer(U[:, 0], Vt[0]))
    torch.testing.assert_close(slope, closed)


def test_power_iteration_never_overestimates_and_a_warm_start_goes_on():
    M = matrix(200, 150)
    top = float(torch.linalg.svdvals(M)[0])
    found = [float(power_iteration(M, steps)[1]) for steps in (1, 5, 50, 2000)]
    assert found == sorted(found) and found[-1] <= top * (1 + 1e-12)
    assert found[-1] == pytest.approx(top, rel=1e-6) and found[1] < 0.99 * top
    _, _, v = power_iteration(M, 10)
    warm, cold = float(power_iteration(M, 10, start=v)[1]), float(power_iteration(M, 20)[1])
    assert warm == pytest.approx(cold, rel=1e-12)


def test_rotations_change_nothing():
    M, Q = matrix(), torch.linalg.qr(matrix(7, 7, 3)).Q
    for name, surrogate in SURROGATES.items():
        assert float(surrogate(Q @ M)) == pytest.approx(float(surrogate(M)), rel=1e-12), name
