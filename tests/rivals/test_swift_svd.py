import itertools
import math

import torch

from prehab_lib.budget import break_even_rank, rank_for
from prehab_lib.rivals import swift_svd as room
from prehab_lib.rivals.swift_svd import ALPHAS, importance
from prehab_lib.rivals.shared import loss_at
from prehab_lib.stats import LayerStats
from tests.stack import refuses, spectrum

SHAPE = (24, 40)
INFLUENCE = [0.3, 0.9, 0.1, 0.2]
UNEQUAL = {f"blocks.{i}.fc": spectrum(SHAPE, sigma) for i, sigma in enumerate([0.0, 1.0, 30.0, 1e4])}
STATS = {f"blocks.{i}.fc": LayerStats(influence=x) for i, x in enumerate(INFLUENCE)}


def plans_of(given, removed):
    return [importance(removed=removed, **given, alpha=alpha) for alpha in ALPHAS]


def test_a_type_keeps_the_sum_of_its_uniform_ranks():
    for removed, alpha in itertools.product([0.03, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99], [0, 0.35, 1]):
        ranks = importance(UNEQUAL, removed, stats=STATS, alpha=alpha).values()
        uniform, at = rank_for(SHAPE, removed), f"removed {removed}, alpha {alpha}"
        assert sum(ranks) == 4 * uniform, at
        assert all(max(1, uniform / 2) <= rank <= break_even_rank(SHAPE) for rank in ranks), at


def test_ranks_are_the_formula_by_hand():
    """Scores 1 and 2 share what the floor leaves of two uniform ranks 7: floors 4, a pool of 6, so 2 and 4 more."""
    layers = {"h.0": spectrum(SHAPE, 0.0), "h.1": spectrum(SHAPE, (math.e**2 - math.e) / (24 - 7) ** 0.5)}
    for second, alpha, expected in ((0.5, 0, [6, 8]), (0.1, 1, [8, 6]), (0.1, 0.5, [7, 7])):  # β = 2 and 1; √2 each
        stats = {"h.0": LayerStats(influence=0.5), "h.1": LayerStats(influence=second)}
        assert list(importance(layers, 0.5, stats=stats, alpha=alpha).values()) == expected, alpha


def test_a_higher_score_never_gets_a_lower_rank_and_break_even_cuts_off():
    by_loss = list(importance(UNEQUAL, 0.5, stats=STATS, alpha=0).values())
    assert by_loss == sorted(by_loss) and by_loss[0] < by_loss[-1]
    by_influence = importance(UNEQUAL, 0.5, stats=STATS, alpha=1)
    ranks = [rank for _, rank in sorted(zip(INFLUENCE, by_influence.values(), strict=True))]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]
    ranks = importance(UNEQUAL, 0.1, stats=STATS, alpha=0)
    assert ranks["blocks.3.fc"] == break_even_rank(SHAPE) == 14
    assert sum(ranks.values()) == 4 * rank_for(SHAPE, 0.1)  # what that cuts off goes to the others


def test_equal_scores_are_uniform():
    equal = dict.fromkeys(UNEQUAL, spectrum(SHAPE, 2.0))
    same = dict.fromkeys(UNEQUAL, LayerStats(influence=0.4))
    for removed in (0.2, 0.37, 0.5, 0.8):
        assert set(importance(equal, removed, stats=same, alpha=0.6).values()) == {rank_for(SHAPE, removed)}
        assert set(importance(equal, removed, stats=STATS, alpha=0).values()) == {rank_for(SHAPE, removed)}


def test_alpha_is_the_one_with_the_lowest_loss_on_validation_data_or_else_on_batches(given):
    plans = plans_of(given, 0.6)
    for data, arguments in ((given["validation"], given), (given["batches"], given | {"validation": None})):
        losses = [loss_at(given["model"], given["decompositions"], plan, given["task_loss"], data) for plan in plans]
        assert len(set(losses)) > 1
        assert importance(removed=0.6, **arguments) == plans[losses.index(min(losses))]


def test_of_equals_the_smallest_alpha_wins(given):
    plans = plans_of(given, 0.5)
    assert plans[0] != plans[-1]
    for loss in (torch.tensor(1.0), torch.tensor(math.nan)):
        flat = given | {"task_loss": lambda model, batch, loss=loss: loss}
        assert importance(removed=0.5, **flat) == plans[0], loss


def test_equal_plans_are_scored_once_and_a_single_one_never(given, monkeypatch):
    scored = []
    monkeypatch.setattr(room, "loss_at", lambda model, decompositions, plan, *_: scored.append(plan) or 1.0)
    importance(removed=0.5, **given)
    plans = plans_of(given, 0.5)
    distinct = [plan for number, plan in enumerate(plans) if plan not in plans[:number]]
    assert [dict.fromkeys(given["decompositions"]) | plan for plan in scored] == distinct
    scored.clear()
    one = {"head": spectrum(SHAPE, 1.0)}
    assert importance(removed=0.5, **(given | {"decompositions": one})) == {"head": rank_for(SHAPE, 0.5)}
    assert importance(one, 0.5, alpha=0.6) == {"head": rank_for(SHAPE, 0.5)}  # neither data nor influence
    assert not scored


def test_what_is_missing_or_bad_is_named(given):
    refuses(
        lambda **change: importance(removed=0.5, **(given | change)),
        ({"model": None}, "allocation 'importance' without alpha needs model"),
        ({"task_loss": None}, "needs task_loss"),
        ({"validation": None, "batches": None}, "needs batches"),
        ({"validation": iter([])}, "validation many times.*not a generator"),
        ({"validation": []}, "batches are empty"),
        ({"stats": None}, "layer 'blocks.0.down' needs the statistic 'influence'"),
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"alpha": "0.5"}, "alpha = '0.5'"),
        ({"alpha": math.nan}, "alpha = nan"),
    )
