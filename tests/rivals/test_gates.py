"""The gate's formula, the budget of several gates, whole ranks that keep it, and smooth truncation with its gradient."""

import itertools
import math

import pytest
import torch

from prehab_lib.budget import break_even_rank
from prehab_lib.rivals import dobi
from prehab_lib.rivals.dobi import LIMIT, truncate_smoothly
from prehab_lib.rivals.gates import Gates, Settings, gate
from prehab_lib.rivals.shared import ACCOUNTINGS
from tests.stack import refuses

SHAPES = {"a": (24, 40), "b": (40, 24), "k": (8, 32), "square": (16, 16), "gate": (1, 24)}
TWO = {"a": (24, 40), "b": (24, 40)}
accountings = pytest.mark.parametrize("accounting", ACCOUNTINGS)


def placed(gates: Gates, **gammas: float) -> Gates:
    """The same gates, put by hand."""
    shares = [gammas.get(name, 0.0) / cost.full for name, cost in gates.costs.items()]
    gates.shares = torch.tensor(shares, dtype=torch.float64, requires_grad=True)
    return gates


def cost(ranks, shapes=SHAPES, accounting="break_even"):
    unit = {"break_even": sum, "remap": max}[accounting]
    return sum(math.prod(shapes[n]) if rank is None else rank * unit(shapes[n]) for n, rank in ranks.items())


def double(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


# Gates


def test_the_gate_is_the_printed_formula_monotone_and_sums_to_gamma():
    gamma, i = 2.3, torch.arange(6) + 0.5  # around the middle of each component
    torch.testing.assert_close(gate(torch.tensor(gamma), 6, 1.7), 0.5 * torch.tanh(1.7 * (gamma - i)) + 0.5)
    T = torch.stack([gate(double(g), 8, 1.0) for g in torch.linspace(-1, 9, 50).tolist()])
    assert (T.diff(dim=0) > 0).all() and (T.diff(dim=1) < 0).all()
    # Exactly at whole and half numbers, and within half a component between them.
    within = {10.0: 1e-3, 10.5: 1e-3, 10.2: 0.25, 10.8: 0.25}
    for beta, gamma in itertools.product((0.5, 2.0, 10.0), within):
        assert float(gate(double(gamma), 21, beta).sum()) == pytest.approx(gamma, abs=within[gamma]), (beta, gamma)


@accountings
def test_gates_start_at_the_target(accounting):
    for removed in (0.05, 0.2, 0.4, 0.73, 0.95):
        gates = Gates(SHAPES, removed, accounting)
        assert float(gates.kept_now().detach()) == pytest.approx(1 - removed, abs=1e-12), removed
        for name, gamma in gates.gammas().items():
            m, n = SHAPES[name]
            full = m * n / (m + n) if accounting == "break_even" else min(m, n)
            assert gamma == pytest.approx((1 - removed) * full), (removed, name)
        assert "gate" not in gates.gammas()


@accountings
def test_the_budget_is_counted_by_hand_and_what_is_outside_is_pulled_back(accounting):
    """γ = 3 and 30 (beyond full rank) on (24, 40) and (40, 24): 3 · 64 and a dense 960, or 3 · 40 and 960."""
    gates = placed(Gates({"a": (24, 40), "b": (40, 24)}, 0.4, accounting), a=3.0, b=30.0)
    unit = 64 if accounting == "break_even" else 40
    assert float(gates.kept_now().detach()) == pytest.approx((3 * unit + 960) / 1920)
    (slope,) = torch.autograd.grad(gates.kept_now(), gates.shares)
    torch.testing.assert_close(slope, double([24 * unit / 1920, 0.0]))  # a dense layer costs no more
    assert float(placed(gates, a=-2.0, b=27.0).outside().detach()) == pytest.approx(2**2 + 3**2)
    assert float(placed(gates, a=0.0, b=24.0).outside().detach()) == 0


@accountings
def test_whole_ranks_fill_the_budget_and_stay_within(accounting):
    for removed, seed in itertools.product((0.02, 0.2, 0.4, 0.6, 0.8), range(5)):
        gates, generator = Gates(SHAPES, removed, accounting), torch.Generator().manual_seed(seed)
        drawn = {n: c.full * float(torch.rand(1, generator=generator)) * 1.2 - 1 for n, c in gates.costs.items()}
        ranks, at = placed(gates, **drawn).whole_ranks(), f"removed {removed}, seed {seed}"
        allowed = (1 - removed) * sum(math.prod(SHAPES[name]) for name in ranks)
        stored = cost(ranks, accounting=accounting)
        assert stored <= allowed, at
        largest_step = max(of.unit for of in gates.costs.values())
        assert stored > allowed - largest_step or all(rank is None for rank in ranks.values()), at
        for name, rank in ranks.items():
            most = break_even_rank(SHAPES[name]) if accounting == "break_even" else min(SHAPES[name])
            assert rank is None or 1 <= rank <= most, at


def test_whole_ranks_by_hand():
    """Two layers of 64 numbers a rank share 960: fifteen ranks."""
    gates = Gates(TWO, 0.5)
    assert placed(gates, a=11.4, b=3.3).whole_ranks() == {"a": 12, "b": 3}  # 11 + 3, and the nearer to its next half
    assert placed(gates, a=11.0, b=4.0).whole_ranks() == {"a": 11, "b": 4}
    assert placed(gates, a=21.0, b=14.0).whole_ranks() == {"a": 11, "b": 4}  # both move by the same share
    thin = Gates({"thin": (2, 40), "a": (24, 40)}, 0.9)
    assert placed(thin, thin=-5.0, a=1.0).whole_ranks() == {"thin": 1, "a": 1}  # rank 1 is the least
    # Above break-even a layer is dense and counted so: 960 + 9 · 64 = 1536 = 0.8 · 1920.
    assert placed(Gates(TWO, 0.2), a=24.0, b=8.0).whole_ranks() == {"a": None, "b": 9}
    # 38 · 40 ≤ 1536; every rank is stored as factors.
    assert placed(Gates(TWO, 0.2, "remap"), a=24.0, b=14.4).whole_ranks() == {"a": 24, "b": 14}


def test_settings_take_lists_from_parameter_files_and_name_a_bad_one():
    assert Settings(beta=[1, 10], steps=3).beta_at(2) == pytest.approx(10)
    assert Settings(steps=1).beta_at(0) == 1
    refuses(
        Settings,
        ({"beta": 10.0}, "beta = 10.0: give the first and the last"),
        ({"beta": (1.0, 0.0)}, "beta = 0.0"),
        ({"weight_of_budget": 0}, "weight_of_budget = 0"),
        ({"accounting": "bytes"}, "accounting = 'bytes' is not known: choose one of break_even, remap"),
    )


# Smooth truncation

DISTINCT = [3.0, 2.2, 1.1, 0.6, 0.2]


def with_spectrum(t: int, m: int, sigma: list, dtype=torch.float64) -> torch.Tensor:
    """A matrix (t, m) of these singular values."""
    generator = torch.Generator().manual_seed(0)
    draw = dict(dtype=torch.float64, generator=generator)
    U, V = (torch.linalg.qr(torch.randn(size, len(sigma), **draw)).Q for size in (t, m))
    return ((U * double(sigma)) @ V.T).to(dtype)


def upstream(t=7, m=5, seed=5):
    return torch.randn(t, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(A, gamma, beta, G=None):
    A, gamma = A.clone().requires_grad_(), torch.tensor(gamma, dtype=A.dtype, requires_grad=True)
    truncate_smoothly(A, gamma, beta).backward(upstream(*A.shape, seed=1).to(A) if G is None else G)
    return A.grad, gamma.grad


def test_a_steep_gate_is_hard_truncation():
    A = with_spectrum(7, 5, DISTINCT)
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    for rank, beside in itertools.product((0, 1, 3, 5), (0, 0.4, -0.4)):
        hard = U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
        F = truncate_smoothly(A, torch.tensor(rank + beside), 1e4)
        torch.testing.assert_close(F, hard, rtol=0, atol=1e-12, msg=f"rank {rank}, {beside} beside it")
    torch.testing.assert_close(truncate_smoothly(A, torch.tensor(12.0), 10.0), A, rtol=0, atol=1e-12)


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
def test_gradcheck(sigma, gamma, beta):
    for t, m in ((7, 5), (5, 7), (6, 6)):
        A, at = with_spectrum(t, m, sigma).requires_grad_(), double(gamma).requires_grad_()
        assert torch.autograd.gradcheck(lambda A, g: truncate_smoothly(A, g, beta), (A, at), atol=1e-5), (t, m)


def test_equal_singular_values_pass_the_gradient_through_and_zeros_have_finite_ones():
    G = upstream(5, 5, seed=3)
    torch.testing.assert_close(gradients(with_spectrum(5, 5, [2.0] * 5), 9.0, 10.0, G=G)[0], G)  # where all are kept
    along_A, along_gamma = gradients(torch.zeros(4, 3, dtype=torch.float64), 1.5, 10.0)
    assert torch.isfinite(along_A).all() and float(along_gamma) == 0


def test_a_tie_across_the_gate_is_finite_and_bounded(monkeypatch):
    arrived = float(upstream(seed=1).norm())
    points = itertools.product([1.0, 10.0, 1e4], [torch.float32, torch.float64], [0.0, 1e-14, 1e-7, 1e-4])
    for at in points:
        beta, dtype, gap = at
        A, sizes = with_spectrum(7, 5, [4.0, 2.0 + gap, 2.0, 1.0, 0.0], dtype), []
        for limit in (10.0, LIMIT):
            monkeypatch.setattr(dobi, "LIMIT", limit)
            along_A, along_gamma = gradients(A, 2.0, beta)
            assert torch.isfinite(along_A).all() and torch.isfinite(along_gamma), at
            sizes.append(float(along_A.norm()))
            assert sizes[-1] <= (1 + limit) * arrived, at
        if beta > 1 and gap < 1e-5:
            assert sizes[1] > 100 * sizes[0], at  # the bound is what holds it


def test_the_gradient_has_no_unit():
    """Relative tests throughout: what holds for A holds for A in other units, also where σ nearly tie."""
    A = with_spectrum(6, 5, [4.0, 2.0 + 1e-5, 2.0, 1.0, 0.0])
    for scale in (1e-12, 1e12):
        torch.testing.assert_close(gradients(scale * A, 2.0, 3.0)[0], gradients(A, 2.0, 3.0)[0], rtol=1e-4, atol=1e-6)


def test_autocast_changes_nothing():
    torch.manual_seed(0)
    A, gamma = torch.randn(12, 8), torch.tensor(3.0)
    plain = truncate_smoothly(A, gamma, 4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(truncate_smoothly(A, gamma, 4.0), plain)
