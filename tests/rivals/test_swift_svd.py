import itertools
import math

import pytest
import torch

from prehab_lib.budget import break_even_rank, rank_for
from prehab_lib.rivals import swift_svd as room
from prehab_lib.rivals.swift_svd import ALPHAS, importance
from prehab_lib.rivals.trial import loss_at
from prehab_lib.stats import LayerStats
from tests.stack import everything, spectrum

SHAPE = (24, 40)
SIGMAS = [0.0, 1.0, 30.0, 1e4]
INFLUENCE = [0.3, 0.9, 0.1, 0.2]


@pytest.fixture(scope="module")
def given():
    torch.set_num_threads(1)
    return everything()


@pytest.fixture
def unequal():
    names = [f"blocks.{number}.fc" for number in range(4)]
    decompositions = {name: spectrum(SHAPE, sigma) for name, sigma in zip(names, SIGMAS, strict=True)}
    return decompositions, {name: LayerStats(influence=x) for name, x in zip(names, INFLUENCE, strict=True)}


def test_a_type_keeps_the_sum_of_its_uniform_ranks(unequal):
    for removed, alpha in itertools.product([0.03, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99], [0, 0.35, 1]):
        ranks = importance(unequal[0], removed, stats=unequal[1], alpha=alpha).values()
        uniform, at = rank_for(SHAPE, removed), f"removed {removed}, alpha {alpha}"
        assert sum(ranks) == 4 * uniform, at
        assert all(max(1, uniform / 2) <= rank <= break_even_rank(SHAPE) for rank in ranks), at


def test_ranks_are_the_formula_by_hand():
    """Scores 1 and 2 share what the floor leaves of two uniform ranks 7: floors 4, a pool of 6, so 2 and 4 more."""
    layers = {"h.0": spectrum(SHAPE, 0.0), "h.1": spectrum(SHAPE, (math.e**2 - math.e) / (24 - 7) ** 0.5)}
    stats = {"h.0": LayerStats(influence=0.5), "h.1": LayerStats(influence=0.5)}
    assert importance(layers, 0.5, stats=stats, alpha=0) == {"h.0": 6, "h.1": 8}
    stats = {"h.0": LayerStats(influence=0.5), "h.1": LayerStats(influence=0.1)}  # β = 2 and 1
    assert importance(layers, 0.5, stats=stats, alpha=1) == {"h.0": 8, "h.1": 6}
    assert importance(layers, 0.5, stats=stats, alpha=0.5) == {"h.0": 7, "h.1": 7}  # √2 each


def test_a_higher_score_never_gets_a_lower_rank(unequal):
    by_loss = list(importance(unequal[0], 0.5, stats=unequal[1], alpha=0).values())
    assert by_loss == sorted(by_loss) and by_loss[0] < by_loss[-1]
    by_influence = importance(unequal[0], 0.5, stats=unequal[1], alpha=1)
    ranks = [rank for _, rank in sorted(zip(INFLUENCE, by_influence.values(), strict=True))]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]


def test_what_break_even_cuts_off_goes_to_the_others(unequal):
    ranks = importance(unequal[0], 0.1, stats=unequal[1], alpha=0)
    assert ranks["blocks.3.fc"] == break_even_rank(SHAPE) == 14
    assert sum(ranks.values()) == 4 * rank_for(SHAPE, 0.1)


def test_equal_scores_are_uniform(unequal):
    decompositions, stats = unequal
    equal = {name: spectrum(SHAPE, 2.0) for name in decompositions}
    same = {name: LayerStats(influence=0.4) for name in decompositions}
    for removed in (0.2, 0.37, 0.5, 0.8):
        assert set(importance(equal, removed, stats=same, alpha=0.6).values()) == {rank_for(SHAPE, removed)}
        assert set(importance(equal, removed, stats=stats, alpha=0).values()) == {rank_for(SHAPE, removed)}


@pytest.mark.parametrize("where", ["validation", "batches"])
def test_alpha_is_the_one_with_the_lowest_loss(where, given):
    data = given["validation"] if where == "validation" else given["batches"]
    arguments = given | ({} if where == "validation" else {"validation": None})
    plans = [importance(removed=0.6, **given, alpha=alpha) for alpha in ALPHAS]
    losses = [loss_at(given["model"], given["decompositions"], plan, given["task_loss"], data) for plan in plans]
    assert len(set(losses)) > 1
    assert importance(removed=0.6, **arguments) == plans[losses.index(min(losses))]


@pytest.mark.parametrize("loss", [1.0, math.nan])
def test_of_equals_the_smallest_alpha_wins(loss, given):
    flat = given | {"task_loss": lambda model, batch: torch.tensor(loss)}
    plans = [importance(removed=0.5, **given, alpha=alpha) for alpha in ALPHAS]
    assert plans[0] != plans[-1] and importance(removed=0.5, **flat) == plans[0]


def test_equal_plans_are_scored_once_and_a_single_one_never(given, monkeypatch):
    scored = []
    monkeypatch.setattr(room, "loss_at", lambda model, decompositions, plan, *_: scored.append(plan) or 1.0)
    importance(removed=0.5, **given)
    plans = [importance(removed=0.5, **given, alpha=alpha) for alpha in ALPHAS]
    assert [dict.fromkeys(given["decompositions"]) | plan for plan in scored] == [
        plan for number, plan in enumerate(plans) if plan not in plans[:number]
    ]
    scored.clear()
    one = {"head": spectrum(SHAPE, 1.0)}
    assert importance(removed=0.5, **(given | {"decompositions": one})) == {"head": rank_for(SHAPE, 0.5)}
    assert not scored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "allocation 'importance' without alpha needs model"),
        ({"task_loss": None}, "needs task_loss"),
        ({"validation": None, "batches": None}, "needs batches"),
        ({"validation": iter([])}, "validation many times.*not a generator"),
        ({"validation": []}, "batches are empty"),
        ({"stats": None}, "layer 'blocks.0.down' needs the statistic 'influence'"),
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"alpha": "0.5"}, "alpha = '0.5'"),
        ({"alpha": math.nan}, "alpha = nan"),
    ],
)
def test_what_is_missing_is_named(change, message, given):
    with pytest.raises(ValueError, match=message):
        importance(removed=0.5, **(given | change))


def test_a_number_for_alpha_needs_no_data_and_a_lone_layer_no_influence():
    assert importance({"head": spectrum(SHAPE, 1.0)}, 0.5, alpha=0.6) == {"head": rank_for(SHAPE, 0.5)}
