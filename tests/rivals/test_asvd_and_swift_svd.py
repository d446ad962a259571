"""ASVD's search against all thresholds, and Swift-SVD's ranks against the formula by hand."""

import copy
import itertools
import math

import pytest

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.rivals import shared
from prehab_lib.rivals.asvd import sensitivity, solo_losses
from prehab_lib.rivals.shared import compressible, loss_at, parameters
from prehab_lib.rivals.swift_svd import ALPHAS, importance
from prehab_lib.stats import LayerStats
from prehab_lib.surgery import compress
from tests.stack import refuses, spectrum


@pytest.fixture(scope="module")
def losses(given):
    tenths = [number / 10 for number in range(1, 10)]
    return solo_losses(given["decompositions"], given["model"], given["task_loss"], given["batches"], tenths)


def ranks_of(shapes, *arguments, **options):
    """Those of the layers that some rank makes smaller."""
    ranks = sensitivity(*arguments, **options)
    return {name: ranks[name] for name in shapes}


def test_it_is_the_best_of_all_thresholds(given, losses):
    """Another route: try every loss as threshold, keep the lowest that fits."""
    shapes = compressible(given["decompositions"])
    thresholds = sorted(itertools.chain.from_iterable(by_rank.values() for by_rank in losses.values()))
    assert len(set(thresholds)) == len(thresholds)
    for removed in (0.05, 0.2, 0.37, 0.5, 0.66, 0.8, 0.9):
        budget = (1 - check_removed(removed)) * sum(m * n for m, n in shapes.values())
        for threshold in thresholds:
            plan = {n: min((r for r, loss in losses[n].items() if loss <= threshold), default=None) for n in shapes}
            if parameters(shapes, plan) <= budget:
                break
        assert ranks_of(shapes, removed=removed, losses=losses, **given) == plan, removed


def test_by_its_name_it_tries_what_the_authors_code_tries(given):
    """Kept fractions from 0.4 on: from 60 % removed all layers are at the smallest, or at the uniform answer below it."""
    shapes = compressible(given["decompositions"])
    found = solo_losses(given["decompositions"], given["model"], given["task_loss"], given["batches"])
    tried = {name: {rank_for(shape, tenths / 10) for tenths in range(1, 7)} for name, shape in shapes.items()}
    assert {name: set(by_rank) for name, by_rank in found.items()} == tried
    for removed in (0.6, 0.75):
        uniform = {name: rank_for(shape, removed) for name, shape in shapes.items()}
        assert ranks_of(shapes, removed=removed, **given) == uniform, removed


def test_a_nan_loss_of_one_batch_is_enough(given):
    seen = iter([1.0, math.nan, 1.0, 1.0])
    assert loss_at(given["model"], {}, {}, lambda model, batch: next(seen), given["batches"]) == math.inf
    assert next(seen) == 1.0  # the rest was spared


def test_solo_losses_are_those_of_the_model_surgery_makes(given, losses):
    name, rank = "blocks.0.down", sorted(losses["blocks.0.down"])[2]
    model = copy.deepcopy(given["model"])
    compress(model, "svd_llm", 1 - (rank + 0.01) * 64 / 960, given["stats"], layers=[name])
    assert model.blocks[0].down.rank == rank
    assert loss_at(model, {}, {}, given["task_loss"], given["batches"]) == losses[name][rank]


def test_where_rank_one_is_all_that_fits_it_is_taken():
    """Small layers cost more than their share at rank 1; the large one must make up for them, below its uniform rank."""
    layers = {f"small.{number}": spectrum((3, 3), 1.0) for number in range(200)} | {"large": spectrum((24, 40), 1.0)}
    losses = {name: {1: 1.0} for name in layers} | {"large": {1: 2.0, 2: 1.5, 6: 1.0}}
    assert rank_for((24, 40), 0.6) == 6
    assert set(sensitivity(layers, 0.6, losses=losses).values()) == {1}


def test_losses_that_are_not_finite_are_the_worst(given, losses):
    shapes = compressible(given["decompositions"])
    chosen = ranks_of(shapes, given["decompositions"], 0.5, losses=losses)
    victim = max((name for name in shapes if chosen[name]), key=chosen.get)
    broken, bad = {name: dict(by_rank) for name, by_rank in losses.items()}, (math.nan, math.inf, -math.inf)
    for number, rank in enumerate(sorted(broken[victim])):
        if rank <= chosen[victim]:
            broken[victim][rank] = bad[number % 3]
    ranks = ranks_of(shapes, given["decompositions"], 0.5, losses=broken)
    assert ranks[victim] is None or ranks[victim] > chosen[victim]
    assert parameters(shapes, ranks) <= sum(m * n for m, n in shapes.values()) / 2


def test_what_is_missing_or_bad_is_named(given):
    refuses(
        lambda **change: sensitivity(removed=0.5, **(given | change)),
        ({"model": None}, "allocation 'sensitivity' needs model"),
        ({"task_loss": None}, "allocation 'sensitivity' needs task_loss"),
        ({"batches": None}, "allocation 'sensitivity' needs batches"),
        ({"batches": []}, "batches are empty"),
        ({"batches": (batch for batch in [])}, "batches many times.*not a generator"),
        ({"losses": {"head": {1: 0.0}}}, "losses lack layer 'blocks.0.down'"),
    )


# Swift-SVD


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


def test_alpha_is_the_one_with_the_lowest_loss_on_validation_data_or_else_on_batches(given):
    plans = plans_of(given, 0.6)
    for data, arguments in ((given["validation"], given), (given["batches"], given | {"validation": None})):
        losses = [loss_at(given["model"], given["decompositions"], plan, given["task_loss"], data) for plan in plans]
        assert len(set(losses)) > 1
        assert importance(removed=0.6, **arguments) == plans[losses.index(min(losses))]


def test_equal_plans_are_scored_once_and_a_single_one_never(given, monkeypatch):
    scored = []
    monkeypatch.setattr(shared, "loss_at", lambda model, decompositions, plan, **_: scored.append(plan) or 1.0)
    plans = plans_of(given, 0.5)
    assert importance(removed=0.5, **given) == plans[0] != plans[-1]  # of equals the smallest alpha
    distinct = [plan for number, plan in enumerate(plans) if plan not in plans[:number]]
    assert [dict.fromkeys(given["decompositions"]) | plan for plan in scored] == distinct
    scored.clear()
    one = {"head": spectrum(SHAPE, 1.0)}
    assert importance(removed=0.5, **(given | {"decompositions": one})) == {"head": rank_for(SHAPE, 0.5)}
    assert importance(one, 0.5, alpha=0.6) == {"head": rank_for(SHAPE, 0.5)}  # neither data nor influence
    assert not scored


def test_what_importance_misses_is_named(given):
    refuses(
        lambda **change: importance(removed=0.5, **(given | change)),
        ({"model": None}, "allocation 'importance' without alpha needs model"),
        ({"task_loss": None}, "needs task_loss"),
        ({"validation": None, "batches": None}, "needs batches"),
        ({"validation": iter([])}, "validation many times.*not a generator"),
        ({"validation": []}, "batches are empty"),
        ({"stats": None}, "layer 'blocks.0.down' needs the statistic 'influence'"),
    )
