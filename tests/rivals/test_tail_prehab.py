import copy

import pytest
import torch

from prehab_lib.allocation import uniform
from prehab_lib.evaluate import classification_loss
from prehab_lib.precision import Memory
from prehab_lib.prehab import Training, prehab
from prehab_lib.rivals.tail import Tail
from prehab_lib.stats import collect
from prehab_lib.weightings import decompose_all
from tests.rivals.test_tail import RANKS, SETTINGS, run, same, start, tails_of


@pytest.fixture
def toy():
    return start()


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_planned_tails_fall_below_the_controls(coordinates, toy):
    more = dict(steps=30, coordinates=coordinates, surrogate=Tail(RANKS, refresh=10))
    ours, control = run(toy, lam=20.0, **more)[0], run(toy, lam=0.0, **more)[0]
    low, high = (tails_of(model, toy[2], {"query": 3, "out": 2}) for model in (ours, control))
    assert all(low[name] < 0.7 * high[name] for name in low)


def test_zero_lambda_is_plain_fine_tuning_to_the_bit(toy):
    ours, history = run(toy, lam=0.0)
    assert same(ours, run(toy, surrogate="nuclear", lam=0.0)[0])
    assert history.rows[0]["surrogate"] > 0 and "tail" in history.rows[3] and "tail" not in history.rows[4]


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_a_layer_planned_dense_feels_no_penalty(coordinates, toy):
    ours, control = (run(toy, steps=1, lam=lam, coordinates=coordinates)[0] for lam in (50.0, 0.0))
    for name, rank in RANKS.items():
        alike = torch.equal(ours.get_submodule(name).weight, control.get_submodule(name).weight)
        assert alike == (rank is None), name
    everything_dense = Tail(dict.fromkeys(RANKS), refresh=3)
    assert same(run(toy, surrogate=everything_dense, lam=50.0)[0], run(toy, lam=0.0)[0])


def test_no_decomposition_between_refreshes(toy, monkeypatch):
    calls, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    monkeypatch.setattr(torch.linalg, "svdvals", lambda *_: pytest.fail("a decomposition in the loop"))
    run(toy, steps=7, training=Training(log_every=None))
    assert len(calls) == 3 * 2  # at steps 0, 3 and 6, of two layers


def test_a_plan_is_made_anew_from_the_model_as_it_is(toy):
    seen = []

    def plan(model):
        stats = collect(model, toy[1], list(RANKS), needs={"gram", "grad"}, task_loss=classification_loss)
        seen.append(model.query.weight.detach().clone())
        return uniform(decompose_all(model, stats), 0.3 if len(seen) == 1 else 0.8)

    _, history = run(toy, surrogate=Tail(plan=plan, refresh=3))
    assert len(seen) == 2 and torch.equal(seen[0], toy[0].query.weight) and not torch.equal(*seen)
    ranks = [history.rows[step]["tail"]["ranks"] for step in (0, 3)]
    cuts = decompose_all(toy[0], toy[2])
    assert ranks == [uniform(cuts, 0.3), uniform(cuts, 0.8)]


def test_a_plan_that_says_the_same_leaves_no_trace(toy):
    def plan(model):
        assert torch.is_grad_enabled() and model.training  # a plan may differentiate on its own
        collect(model, toy[1], needs={"grad"}, task_loss=classification_loss)
        return RANKS

    ours, history = run(toy, surrogate=Tail(plan=plan, refresh=3))
    fixed, expected = run(toy)
    assert same(ours, fixed) and history.rows == expected.rows


def test_bad_options_are_named_and_nothing_changes(toy):
    cases = [
        ({}, "give either ranks=.* or plan="),
        ({"ranks": RANKS, "plan": len}, "give either ranks=.* or plan="),
        ({"ranks": RANKS, "refresh": 0}, "refresh = 0"),
        ({"ranks": {"query": 3, "key": 3}}, "ranks of the tail penalty lacks layer 'out'"),
        ({"ranks": RANKS | {"nope": 1}}, "names 'nope', which is not among the layers"),
        ({"ranks": RANKS | {"out": 5}}, "gives 'out' rank 5: give 1 to 4, or None"),
        ({"ranks": RANKS | {"out": True}}, "gives 'out' rank True"),
        ({"plan": lambda model: {"query": 3}}, "the plan of the tail penalty lacks layer 'key'"),
    ]
    model = copy.deepcopy(toy[0])
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            prehab(model, classification_loss, toy[1], toy[2], **SETTINGS | dict(surrogate=Tail(**options)))
        assert same(model, toy[0]) and all(p.requires_grad for p in model.parameters()), message


def test_where_a_plan_cannot_look_at_the_model_it_is_refused(toy):
    tail = Tail(plan=lambda model: pytest.fail("asked"))
    with pytest.raises(ValueError, match="use coordinates='weight', or fix"):
        run(toy, surrogate=tail, coordinates="whitened")
    half = copy.deepcopy(toy[0]).bfloat16(), toy[1], toy[2]
    with pytest.raises(ValueError, match="pass compute='float32', or fix"):
        run(half, surrogate=tail)
    fixed, _ = run(half)
    planned, _ = run(half, surrogate=Tail(plan=lambda model: RANKS, refresh=3), memory=Memory(compute="float32"))
    assert {p.dtype for p in (*fixed.parameters(), *planned.parameters())} == {torch.bfloat16}
    assert not same(fixed, half[0])
