"""The gate's formula, the budget of several gates, and whole ranks that keep it."""

import itertools
import math

import pytest
import torch

from prehab_lib.budget import break_even_rank, rank_for
from prehab_lib.rivals.gates import Gates, Settings, gate
from prehab_lib.rivals.ranks import ACCOUNTINGS

SHAPES = {"a": (24, 40), "b": (40, 24), "k": (8, 32), "square": (16, 16), "gate": (1, 24)}
accountings = pytest.mark.parametrize("accounting", ACCOUNTINGS)


def placed(gates: Gates, **gammas: float) -> Gates:
    """The same gates, put by hand."""
    full = {name: cost.full for name, cost in gates.costs.items()}
    shares = {name: gammas.get(name, 0.0) / full[name] for name in full}
    gates.shares = torch.tensor(list(shares.values()), dtype=torch.float64, requires_grad=True)
    return gates


def cost(ranks, shapes=SHAPES, accounting="break_even"):
    unit = {"break_even": sum, "remap": max}[accounting]
    return sum(math.prod(shapes[n]) if rank is None else rank * unit(shapes[n]) for n, rank in ranks.items())


def double(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_the_gate_is_the_printed_formula_around_the_middle_of_each_component():
    gamma, i = 2.3, torch.arange(6) + 0.5
    torch.testing.assert_close(gate(torch.tensor(gamma), 6, 1.7), 0.5 * torch.tanh(1.7 * (gamma - i)) + 0.5)


def test_the_gate_is_monotone_and_sums_to_gamma():
    T = torch.stack([gate(double(g), 8, 1.0) for g in torch.linspace(-1, 9, 50).tolist()])
    assert (T.diff(dim=0) > 0).all() and (T.diff(dim=1) < 0).all()
    # Exactly at whole and half numbers, and within half a component between them.
    for beta, (gamma, within) in itertools.product(
        (0.5, 2.0, 10.0), ((10.0, 1e-3), (10.5, 1e-3), (10.2, 0.25), (10.8, 0.25))
    ):
        assert float(gate(double(gamma), 21, beta).sum()) == pytest.approx(gamma, abs=within), (beta, gamma)


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
def test_the_budget_is_counted_by_hand(accounting):
    """γ = 3 and 30 (beyond full rank) on (24, 40) and (40, 24): 3 · 64 and a dense 960, or 3 · 40 and 960."""
    gates = placed(Gates({"a": (24, 40), "b": (40, 24)}, 0.4, accounting), a=3.0, b=30.0)
    unit = 64 if accounting == "break_even" else 40
    assert float(gates.kept_now().detach()) == pytest.approx((3 * unit + 960) / 1920)
    (slope,) = torch.autograd.grad(gates.kept_now(), gates.shares)
    torch.testing.assert_close(slope, double([24 * unit / 1920, 0.0]))  # a dense layer costs no more


def test_gates_outside_their_layer_are_pulled_back():
    gates = placed(Gates({"a": (24, 40), "b": (40, 24)}, 0.4), a=-2.0, b=27.0)
    assert float(gates.outside().detach()) == pytest.approx(2**2 + 3**2)
    assert float(placed(gates, a=0.0, b=24.0).outside().detach()) == 0


@accountings
def test_whole_ranks_fill_the_budget_and_stay_within(accounting):
    for removed, seed in itertools.product((0.02, 0.2, 0.4, 0.6, 0.8), range(5)):
        gates, generator = Gates(SHAPES, removed, accounting), torch.Generator().manual_seed(seed)
        drawn = {n: c.full * float(torch.rand(1, generator=generator)) * 1.2 - 1 for n, c in gates.costs.items()}
        ranks, at = placed(gates, **drawn).whole_ranks(), f"removed {removed}, seed {seed}"
        total = sum(math.prod(SHAPES[name]) for name in ranks)
        stored = cost(ranks, accounting=accounting)
        assert stored <= (1 - removed) * total, at
        largest_step = max(of.unit for of in gates.costs.values())
        assert stored > (1 - removed) * total - largest_step or all(rank is None for rank in ranks.values()), at
        for name, rank in ranks.items():
            most = break_even_rank(SHAPES[name]) if accounting == "break_even" else min(SHAPES[name])
            assert rank is None or 1 <= rank <= most, at


def test_whole_ranks_by_hand():
    """Two layers of 64 numbers a rank share 960: fifteen ranks."""
    gates = Gates({"a": (24, 40), "b": (24, 40)}, 0.5)
    assert placed(gates, a=11.4, b=3.3).whole_ranks() == {"a": 12, "b": 3}  # 11 + 3, and the nearer to its next half
    assert placed(gates, a=11.0, b=4.0).whole_ranks() == {"a": 11, "b": 4}
    assert placed(gates, a=21.0, b=14.0).whole_ranks() == {"a": 11, "b": 4}  # both move by the same share
    thin = Gates({"thin": (2, 40), "a": (24, 40)}, 0.9)
    assert placed(thin, thin=-5.0, a=1.0).whole_ranks() == {"thin": 1, "a": 1}  # rank 1 is the least


def test_a_layer_above_break_even_is_dense_and_counted_so():
    shapes = {"a": (24, 40), "b": (24, 40)}
    ranks = placed(Gates(shapes, 0.2), a=24.0, b=8.0).whole_ranks()
    assert ranks == {"a": None, "b": 9}  # 960 + 9 · 64 = 1536 = 0.8 · 1920
    remapped = placed(Gates(shapes, 0.2, "remap"), a=24.0, b=14.4).whole_ranks()
    assert remapped == {"a": 24, "b": 14}  # 38 · 40 ≤ 1536; every rank is stored as factors


def test_without_a_step_of_learning_equal_layers_keep_their_uniform_rank():
    for removed in (0.1, 0.37, 0.5, 0.8):
        ranks = Gates({f"h.{i}": (24, 40) for i in range(7)}, removed).whole_ranks()
        assert set(ranks.values()) == {rank_for((24, 40), removed)}, removed


def test_a_plan_to_start_from():
    gates = Gates(SHAPES, 0.4, start={"a": 3, "b": None, "k": 2, "square": 5, "gate": None})
    assert gates.gammas() == pytest.approx({"a": 3, "b": 24, "k": 2, "square": 5})
    for start, message in (
        ({"a": 3}, "start lacks layer 'b'"),
        (dict.fromkeys(SHAPES, 3.7), "start has rank 3.7 for 'a'"),
        (dict.fromkeys(SHAPES, 25), "start has rank 25 for 'a': it allows 1 to 24"),
    ):
        with pytest.raises(ValueError, match=message):
            Gates(SHAPES, 0.4, start=start)


def test_settings_take_lists_from_parameter_files_and_name_a_bad_one():
    assert Settings(beta=[1, 10], steps=3).beta_at(2) == pytest.approx(10)
    assert Settings(steps=1).beta_at(0) == 1
    for wrong, message in (
        ({"steps": 0}, "steps = 0"),
        ({"lr": -1.0}, "lr = -1.0"),
        ({"beta": 10.0}, "beta = 10.0: give the first and the last"),
        ({"beta": (1.0, 0.0)}, "beta = 0.0"),
        ({"weight_of_budget": 0}, "weight_of_budget = 0"),
        ({"accounting": "bytes"}, "accounting = 'bytes' is not known: choose one of break_even, remap"),
        ({"seed": 1.5}, "seed = 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Settings(**wrong)
