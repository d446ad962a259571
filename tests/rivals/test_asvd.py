import copy
import itertools
import math

import pytest

from prehab_lib.budget import check_removed, rank_for
from prehab_lib.factors import LowRankLinear
from prehab_lib.rivals.asvd import sensitivity, solo_losses
from prehab_lib.rivals.shared import compressible, parameters
from prehab_lib.rivals.shared import loss_at
from prehab_lib.surgery import compress
from tests.stack import Stack, bits, refuses, spectrum, untouched


@pytest.fixture(scope="module")
def losses(given):
    return solo_losses(given["decompositions"], given["model"], given["task_loss"], given["batches"])


def ranks_of(shapes, *arguments, **options):
    """Those of the layers that some rank makes smaller."""
    ranks = sensitivity(*arguments, **options)
    return {name: ranks[name] for name in shapes}


def test_a_larger_budget_gives_no_layer_a_smaller_rank(given, losses):
    shapes = compressible(given["decompositions"])
    before = dict.fromkeys(shapes, 0)
    for removed in [number / 200 for number in range(199, 0, -1)]:
        ranks = ranks_of(shapes, given["decompositions"], removed, losses=losses)
        now = {name: rank or min(shapes[name]) + 1 for name, rank in ranks.items()}
        assert all(now[name] >= before[name] for name in shapes), removed
        before = now
    assert None in ranks.values()


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
    assert ranks_of(shapes, removed=0.9, **given) == plan  # measured on the way


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


def test_below_the_smallest_candidate_ranks_are_uniform(given, losses):
    shapes = compressible(given["decompositions"])
    few = {name: {r: loss for r, loss in losses[name].items() if r > rank_for(shapes[name], 0.6)} for name in shapes}
    data = (given["decompositions"], given["model"], given["task_loss"], given["batches"])
    published = solo_losses(*data, candidates=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9))
    for measured, removed in ((few, 0.8), (published, 0.75)):
        uniform = {name: rank_for(shape, removed) for name, shape in shapes.items()}
        assert ranks_of(shapes, given["decompositions"], removed, losses=measured) == uniform, removed


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


def test_the_model_is_untouched_even_when_the_loss_raises_midway(given):
    model = Stack().train()
    model.head.eval()
    before, parts = bits(model), dict(model.named_modules())
    calls = []

    def loss(model, batch):
        assert not model.training
        calls.append(sum(isinstance(module, LowRankLinear) for module in model.modules()))
        if len(calls) == 30:
            raise RuntimeError("out of luck")
        return given["task_loss"](model, batch)

    with pytest.raises(RuntimeError, match="out of luck"):
        sensitivity(removed=0.5, **(given | {"model": model, "task_loss": loss}))
    assert calls == [1] * 30
    assert untouched(model, before) and dict(model.named_modules()) == parts
    assert model.training and not model.head.training


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
    data = (given["decompositions"], given["model"], given["task_loss"], given["batches"])
    refuses(
        lambda candidates: solo_losses(*data, candidates),
        ({"candidates": ()}, "candidates is empty"),
        ({"candidates": (0.5, 1.0)}, "has 1.0"),
        ({"candidates": (0.5, "0.6")}, "has '0.6'"),
    )
