"""Contract of every allocation: whoever adds one to `ALLOCATIONS` inherits these tests."""

import copy
import inspect
from functools import partial

import pytest
import torch

from prehab_lib.allocation import ALLOCATIONS
from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.methods import RECOVERIES, Method
from prehab_lib.rivals.shared import compressible, groups_of_one_type, parameters, share_out
from prehab_lib.rivals.svd_llm_v2 import grouped, removed_fractions
from prehab_lib.scale import stream
from prehab_lib.stats import LayerStats
from prehab_lib.surgery import check_arguments, compress
from prehab_lib.weightings import WEIGHTINGS, Weighting, decompose, decompose_all
from tests.stack import ONE_BUDGET, bits, refuses, spectrum, untouched

every_allocation = pytest.mark.parametrize("allocation", ALLOCATIONS)


pytestmark = pytest.mark.usefixtures("few_steps")


@every_allocation
def test_the_same_question_gets_the_same_answer_and_nothing_is_changed(allocation, given):
    model, call = given["model"].train(), partial(ALLOCATIONS[allocation], **given)
    before, answer = bits(model), call(removed=0.5)
    assert untouched(model, before) and model.training
    backwards = dict(reversed(given["decompositions"].items()))
    assert call(removed=0.5) == call(removed=0.5, decompositions=backwards) == answer
    refuses(call, *(({"removed": removed}, "removed = ") for removed in (0, 1, -0.1, "40", float("nan"))))


@pytest.mark.parametrize("allocation", [name for name in ALLOCATIONS if name not in (*ONE_BUDGET, "learned")])
def test_equal_layers_get_equal_ranks(allocation, given):
    """But for a walk, which stops in the middle of equals once its budget is met, and gates, which want a slope.

    Grouped hands back what rounding left, so that equals may be one rank apart.
    """
    one = given["decompositions"]["blocks.0.up"]
    stats = given["stats"]["blocks.0.up"]
    names = [name for name in given["decompositions"] if name.endswith(".up")]
    same = {"decompositions": dict.fromkeys(names, one), "stats": dict.fromkeys(names, stats)}
    same |= {"task_loss": lambda model, batch: torch.tensor(1.0)}
    ranks = ALLOCATIONS[allocation](removed=0.5, **(given | same))
    uniform = rank_for(one.shape, 0.5)
    assert set(ranks.values()) == ({uniform, uniform + 1} if allocation == "grouped" else {uniform})


OPTIONS = {
    "uniform": "there is none to choose",
    "sensitivity": "choose from losses",
    "grouped": "there is none to choose",
    "importance": "choose from alpha",
    "zero_sum": "choose from rule, floor, accounting, replan",
    "greedy": "choose from floor, accounting, replan",
    "learned": "choose from steps, lr, beta, weight_of_budget, accounting, seed, gates_on",
}


def test_an_option_that_does_not_exist_is_refused_everywhere_before_the_work(given, monkeypatch):
    monkeypatch.undo()  # the whole steps
    assert OPTIONS.keys() == ALLOCATIONS.keys()
    rest = {name: value for name, value in given.items() if name != "decompositions"}
    for name, listed in OPTIONS.items():
        said = f"the set of options for {name!r} has an unknown entry 'flor': {listed}$"
        refuses(partial(ALLOCATIONS[name], **given), ({"removed": 0.4, "flor": 0.1}, said))
        method = Method("gram", name, options={"flor": 0.1})
        refuses(partial(compress, removed=0.4, method=method), (rest, said))
    for name, recovery in RECOVERIES.items():
        refuses(partial(recovery, **given), ({"ridge": 1}, f"{name!r} has an unknown entry 'ridge': there is none"))
    for name, ruler in WEIGHTINGS.items():
        listed = ", ".join([*inspect.signature(ruler).parameters][1:])
        choice = f"choose from {listed}" if listed else "there is none"
        said = f"weighting {name!r} has an unknown entry 'alfa': {choice}"
        for call in (partial(decompose_all, given["model"]), partial(decompose, given["model"].head.weight)):
            refuses(call, ({"stats": None, "weighting": name, "alfa": 0.1}, said))
    streamed = partial(stream.compress, given["model"], Method("identity", options={"flor": 0.1}))
    refuses(streamed, ({"removed": 0.4}, "'uniform' has an unknown entry 'flor'"))
    own = {"stats": None, "weighting": Weighting(), "alfa": 0.1}
    refuses(partial(decompose, given["model"].head.weight), (own, "unknown entry 'alfa': there is none"))


def test_ranks_of_ones_own_are_kept_and_a_bad_one_is_named_before_the_work(given):
    ranks = {"blocks.0.up": 3, "blocks.1.up": 14, "blocks.2.down": None}  # 24 × 40: 14 saves, 15 does not
    report = compress(cut := copy.deepcopy(given["model"]), Method("gram", ranks), None, given["stats"])
    assert report.ranks == dict.fromkeys(given["stats"]) | ranks and "(ranks were given)" in str(report)
    assert all(cut.get_submodule(name).rank == rank for name, rank in ranks.items() if rank)
    bad = [("blocks.0.up", rank, "rank of blocks.0.up = ") for rank in (15, 0, True, 2.0, "3")]
    bad += [("lm_head", 3, "'lm_head' has a rank, but is none of the layers"), ("gate", 1, "rank of gate = 1")]
    cases = [({"method": Method("gram", {name: rank}), "removed": None}, said) for name, rank, said in bad]
    cases += [({"method": Method("gram", ranks), "removed": 0.4}, "removed = 0.4: the ranks are given")]
    before, call = bits(given["model"]), partial(compress, given["model"], stats=given["stats"])
    refuses(call, *cases, also=lambda: untouched(given["model"], before))


@pytest.mark.parametrize("removed", [0.05, 0.2, 0.37, 0.4, 0.5, 0.6, 0.75])
def test_grouped_spends_the_budget_but_for_less_than_one_rank(removed, given, unequal):
    for decompositions in (given["decompositions"], unequal, unequal | {"head": spectrum((12, 30), 2.0)}):
        shapes = compressible(decompositions)
        ranks = grouped(decompositions, removed, stats=None)
        left = (1 - check_removed(removed)) * sum(m * n for m, n in shapes.values()) - parameters(shapes, ranks)
        full = all(ranks[name] == break_even_rank(shape) for name, shape in shapes.items())
        assert left >= 0 and (full or left < max(map(sum, shapes.values())))


BAD_OPTIONS = {
    "importance": [("alpha", "much"), ("alpha", 2), ("alpha", float("nan"))],
    "zero_sum": [("floor", "0.3"), ("floor", 2), ("replan", "yes"), ("rule", ["sigma"]), ("accounting", 3)],
    "greedy": [("floor", None), ("replan", 2)],
    "learned": [("steps", 10**30), ("seed", 10**30), ("seed", -1), ("lr", float("inf")), ("gates_on", None)],
}


@pytest.mark.parametrize("allocation", BAD_OPTIONS)
def test_an_option_of_a_wrong_kind_is_named_before_the_work(allocation, monkeypatch):
    monkeypatch.undo()
    data = dict(task_loss=classification_loss, batches=[], validation=None)
    for name, value in BAD_OPTIONS[allocation]:
        method = Method("gram", allocation, options={name: value})
        refuses(partial(check_arguments, method), ({"data": data}, f"^{name} "))


def test_groups_are_of_one_name_and_one_shape():
    shapes = {"h.0.q": (8, 8), "h.1.q": (8, 8), "h.10.q": (8, 8), "h.0.k": (4, 8), "h.1.k": (8, 8), "fc1": (8, 8)}
    groups = groups_of_one_type(shapes | {"fc2": (8, 8), "experts.0.w2": (8, 8), "experts.1.w2": (8, 8)})
    alone = [["h.0.k"], ["h.1.k"], ["fc1"], ["fc2"]]
    assert groups == [["h.0.q", "h.1.q", "h.10.q"], *alone, ["experts.0.w2", "experts.1.w2"]]


def test_shares_are_proportional_capped_and_complete():
    shares = share_out(10, {"a": 1.0, "b": 2.0, "c": 2.0}, {"a": 10, "b": 10, "c": 10})
    assert shares == {"a": 2, "b": 4, "c": 4}
    shares = share_out(10, {"a": 1.0, "b": 2.0, "c": 2.0}, {"a": 10, "b": 1, "c": 5})
    assert shares == {"a": 4, "b": 1, "c": 5}  # what b and c cannot take goes to a
    assert sum(share_out(10, {"a": 1.0, "b": 2.0}, {"a": 2, "b": 3}).values()) == 5
    assert sum(share_out(7, {"a": 0.1, "b": 0.2, "c": 0.3}, dict.fromkeys("abc", 7)).values()) == 7


SIGMAS = [0.01, 1.0, 3.0, 3.0, 100.0, 1e6]


@pytest.fixture
def unequal():
    return {f"blocks.{number}.fc": spectrum((24, 40), sigma) for number, sigma in enumerate(SIGMAS)}


def test_grouped_fractions_keep_the_budget_and_spare_the_large_losses(unequal):
    for removed in (0.03, 0.2, 0.5, 0.8, 0.85, 0.93):
        fractions = list(removed_fractions(unequal, removed).values())  # SIGMAS ascend
        assert sum(fractions) == len(SIGMAS) * check_removed(removed), removed
        assert all(0 < fraction <= 1 - 64 / (24 * 40) for fraction in fractions), removed
        assert fractions == sorted(fractions, reverse=True) and fractions[2] == fractions[3], removed
        ranks = list(grouped(unequal, removed).values())
        assert abs(ranks[2] - ranks[3]) <= 1, removed
        ranks[2:4] = sorted(ranks[2:4])  # of equals the first name is handed what is left
        assert ranks == sorted(ranks) and (ranks[0] < ranks[-1] or removed in (0.03, 0.93)), removed
    assert set(grouped(unequal, 0.97).values()) == {1}  # a budget below rank one


def test_grouped_is_the_formula_by_hand():
    """L = 0 and L = e² − e of 100 tokens at the uniform rank 7, so g = 1 and 1/2: fractions 2/3 and 1/3 of the sum."""
    sigma = (torch.e**2 - torch.e) / (24 - 7) ** 0.5 / 100**0.5
    layers = {"h.0": spectrum((24, 40), 0.0), "h.1": spectrum((24, 40), sigma)}
    fractions = removed_fractions(layers, 0.5, dict.fromkeys(layers, LayerStats(tokens=100)))
    assert [float(fraction) for fraction in fractions.values()] == pytest.approx([2 / 3, 1 / 3])


def test_grouped_shares_inside_a_type_only(unequal):
    alone = {"head": spectrum((24, 40), 1e9), "blocks.0.other": spectrum((24, 40), 1e-9)}
    fractions = removed_fractions(unequal | alone, 0.5)
    assert fractions["head"] == fractions["blocks.0.other"] == check_removed(0.5)
    assert {name: fractions[name] for name in unequal} == removed_fractions(unequal, 0.5)
