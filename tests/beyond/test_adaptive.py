"""Adaptive λ: searches over copies of one run, and a hypergradient that cannot see what it should."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from prehab_lib.beyond.adaptive import Run, halving, hypergradient, lookahead
from prehab_lib.beyond.truncation import truncation
from prehab_lib.prehab import prehab
from prehab_lib.rivals.tail import Tail
from prehab_lib.stats import LayerStats, collect
from tests.stack import refuses, same

RANKS = {"0": 3, "2": 2}
INPUTS, WAY = (torch.randn(*size, generator=torch.Generator().manual_seed(1)).double() for size in ((9, 32, 6), (6, 5)))
*BATCHES, HELD_OUT = [(x, torch.sin(x @ WAY)) for x in INPUTS]


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def start(surrogate="nuclear", dropout=0.0, white=False):
    """A run of a model with two layers in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Dropout(dropout)).double()
    stats = collect(model, BATCHES, list(RANKS), {"gram"})
    if white:
        stats = {name: LayerStats(gram=torch.eye(len(of.gram)).double()) for name, of in stats.items()}
    return Run(model, loss, BATCHES, stats, surrogate=surrogate, lr=1e-2)


def cut_loss(run, step=lambda name, W: W):
    def validate(model):
        model = copy.deepcopy(model).eval()
        for name, rank in RANKS.items():
            W = model.get_submodule(name).weight
            W.data = truncation(step(name, W.data), run.stats[name].gram, rank)[0]
        return float(loss(model, HELD_OUT).detach())

    return validate


@pytest.mark.parametrize("surrogate", ["nuclear", Tail(ranks=RANKS, refresh=4)])
def test_without_a_delta_it_is_prehab_at_that_lambda_to_the_last_bit(surrogate):
    run = start(surrogate)
    model = copy.deepcopy(run.model)
    prehab(model, loss, BATCHES, run.stats, surrogate=surrogate, lam=0.05, steps=12, lr=1e-2)
    found, rows = lookahead(run, cut_loss(run), 0.05, rounds=3, span=4, deltas=(0.0,))
    assert same(found.model, model) and sum(row["steps"] for row in rows) == 3 * found.step == 36
    assert not same(run.model, model) and run.step == 0 and found.model[0].bias.grad is None


def test_arms_share_dropout_and_moments_and_the_best_of_them_goes_on():
    run, lam = start(dropout=0.5), 0.05
    found, rows = lookahead(run, cut_loss(run), lam, rounds=4, span=2)
    again = run.copy()
    for arms in (rows[k : k + 3] for k in range(0, 12, 3)):
        assert arms[0]["loss"] <= min(arm["loss"] for arm in arms if arm["lam"] == lam)
        lam = arms[0]["lam"]
        again.train(2, lam)
    assert same(found.model, again.model) and cut_loss(run)(again.model) == rows[9]["loss"]
    seen, run.batches = [], BATCHES[:1]
    run.task_loss = lambda model, batch: seen.append(loss(model, batch)) or seen[-1]
    run.optimizer.param_groups[0]["lr"] = 1e-12
    assert run.train(2, 0.0) and abs(seen[0] - seen[1]) > 1e-3, "dropout is that of the step"


def test_delta_shrinks_where_the_sign_flips_and_a_tie_or_a_nan_changes_nothing():
    plan = [(1, 2, 0), (1, 1, 1), (1, 0, 2), (1, 2, 0), (1, 0, 2), (math.nan, 2, 1)]  # centre, down, up
    losses = iter([one for arms in plan for one in arms])
    _, rows = lookahead(start(), lambda model: next(losses), 1.0, rounds=6, span=1)
    wanted = [1.4, 1.4, 0.0, 0.7, 0.35, 0.7]
    assert [math.log(row["lam"]) for row in rows[::3]] == pytest.approx(wanted, abs=1e-12)
    assert min(row["lam"] for row in lookahead(start(), lambda model: 0.0, 1e-5, rounds=1, span=1)[1]) == 1e-5


def test_halving_takes_as_many_steps_and_keeps_the_best_of_each_stage():
    run = start()
    found, rows = halving(run, cut_loss(run), [10.0**k for k in range(-6, 2)], 16)
    assert sum(row["steps"] for row in rows) == 3 * found.step == 48
    for before, after in pairwise([rows[:8], rows[8:12], rows[12:]]):
        assert {row["lam"] for row in after} == {row["lam"] for row in before[: len(after)]}
    assert same(found.model, run.copy().train(16, rows[12]["lam"]).model) and rows[12]["loss"] < rows[13]["loss"]


@pytest.mark.parametrize("layer", RANKS)
def test_the_hypergradient_is_that_of_finite_differences(layer):
    run = start()
    moves = [torch.autograd.grad(of, run.weights) for of in (run.loss(BATCHES[0]), sum(run.term.values()))]
    moves = dict(zip(RANKS, zip(*moves, strict=True), strict=True))

    def after(lam):
        lams = dict.fromkeys(RANKS, 0.03) | {layer: lam}
        return cut_loss(run, lambda name, W: W - 0.1 * (moves[name][0] + lams[name] * moves[name][1]))(run.model)

    found = hypergradient(run, HELD_OUT, RANKS, 0.03, 0.1)[layer]
    assert found == pytest.approx((after(0.0301) - after(0.0299)) / 2e-4, rel=1e-5) and abs(found) > 1e-6


def test_it_is_blind_to_a_penalty_on_what_truncation_drops():
    blind = hypergradient(start(Tail(ranks=RANKS), white=True), HELD_OUT, RANKS, 1.0, 1e-9)
    seen = hypergradient(start("nuclear", white=True), HELD_OUT, RANKS, 1.0, 1e-9)
    assert max(map(abs, blind.values())) < 1e-15 < 1e-12 < min(map(abs, seen.values()))


def test_what_cannot_be_is_said():
    run = start()
    refuses(lambda batches: Run(run.model, loss, batches, {}, surrogate="nuclear", lr=1.0), ({"batches": []}, "= 0"))
    refuses(lambda lams, steps: halving(run, None, lams, steps), ({"lams": range(1, 9), "steps": 12}, "not 12"))
    refuses(lambda lam: lookahead(run, lambda model: math.nan, lam, 1, 1), ({"lam": 0}, "lam"), ({"lam": 1}, "no arm"))
