"""Zero-sum and greedy as allocations: budgets, the repair, and what surgery makes of the ranks."""

import copy
import math
import re

import pytest
import torch

from prehab_lib import weightings
from prehab_lib.evaluate import classification_loss
from prehab_lib.methods import Method
from prehab_lib.rivals.ranks import ACCOUNTINGS
from prehab_lib.rivals.zero_sum import plan, select
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.surgery import check_arguments, compress
from tests.slow_selection import chosen, crowd, instance, reachable
from tests.stack import everything

UNDONE = dict(
    changes={"a": torch.tensor([9.0, 9, 9, 9, 9, 9, 0.1, 0.1]), "b": torch.tensor([1.0, -1] * 4)},
    shapes={"a": (8, 8), "b": (8, 8)},
    removed=0.2,
)


def test_drops_of_a_layer_that_stays_dense_are_undone_and_said():
    found = select(**UNDONE)
    assert found.ranks == {"a": None, "b": 2} and found.undone == ("a",) and found.replans == 0
    assert found.planned - found.shipped == pytest.approx(0.2)


def test_replanning_leaves_such_layers_out_until_the_balance_is_the_shipped_one():
    found = select(**UNDONE, replan=True, trace=True)
    assert found.replans == 1 and found.undone == () and found.ranks == {"a": None, "b": 2}
    assert found.planned == pytest.approx(found.shipped) and {name for name, *_ in found.walk} == {"b"}


def test_three_rounds_are_the_most_and_what_is_left_is_said():
    stable = []
    for given in [*map(instance, range(100)), *map(crowd, range(12))]:
        once, again = chosen(given), chosen(given, replan=True)
        assert again.replans <= 3 and again.removed >= again.budget
        if not once.undone:
            assert again == once
        stable.append(not again.undone)
        walked = {name for name, *_ in again.walk}
        assert all((again.ranks[name] is None) == (name in again.undone) for name in walked)
        assert stable[-1] == (again.planned == pytest.approx(again.shipped, abs=1e-12))
    assert stable.count(False) == 1  # one crowd still has a layer of which drops are undone


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_a_budget_that_cannot_be_met_names_the_nearest(floor, accounting):
    shapes = {"a": (200, 300), "b": (40, 10), "gate": (1, 30)}
    changes = {name: torch.linspace(1, -1, min(shape)) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=f"removed = 0.999 cannot be met.*floor = {floor}") as refused:
        select(changes, shapes, 0.999, floor=floor, accounting=accounting)
    nearest = float(re.search(r"nearest reachable is removed = ([\d.]+)", str(refused.value))[1])
    found = select(changes, shapes, nearest, floor=floor, accounting=accounting)
    assert found.removed == reachable(shapes, floor, accounting)
    with pytest.raises(ValueError, match="cannot be met"):
        select(changes, shapes, round(nearest + 0.002, 4), floor=floor, accounting=accounting)


A, SHAPE = {"a": torch.ones(8)}, {"a": (8, 8)}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((A, SHAPE, 0), {}, "removed = 0:"),
        ((A, SHAPE, 1), {}, "removed = 1:"),
        ((A, SHAPE, -0.1), {}, "removed = -0.1:"),
        ((A, SHAPE, 0.2), {"rule": "random"}, "rule = 'random' is not known: choose one of zero_sum, magnitude"),
        ((A, SHAPE, 0.2), {"accounting": "bits"}, "accounting = 'bits' is not known: choose one of break_even, remap"),
        ((A, SHAPE, 0.2), {"floor": 1.5}, "floor = 1.5"),
        ((A, SHAPE, 0.2), {"floor": math.nan}, "floor = nan"),
        ((A, SHAPE, 0.2), {"floor": True}, "floor = True"),
        ((A, SHAPE, 0.2), {"rule": "sigma"}, "rule 'sigma' looks at singular values: pass sigma"),
        (({}, SHAPE, 0.2), {}, "changes lack layer 'a'"),
        (({"a": torch.ones(7)}, SHAPE, 0.2), {}, "layer 'a' has 8 components, and scores of shape"),
        (({"a": torch.tensor([1.0] * 7 + [math.nan])}, SHAPE, 0.2), {}, "layer 'a': the score of a component is NaN"),
        (({"gate": torch.ones(1)}, {"gate": (1, 30)}, 0.2), {}, "none of their ranks saves parameters"),
    ],
)
def test_bad_input_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        select(*arguments, **options)


@pytest.fixture(scope="module")
def given():
    return everything()


@pytest.mark.parametrize("allocation", ["zero_sum", "greedy"])
@pytest.mark.parametrize("removed", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("options", [{}, {"floor": 0.1}, {"replan": True}], ids=str)
def test_what_is_counted_is_recounted_from_the_modules(allocation, removed, options, given):
    model, decompositions, stats = copy.deepcopy(given["model"]), given["decompositions"], given["stats"]
    rule = {"zero_sum": "zero_sum", "greedy": "magnitude"}[allocation]
    _, selection = plan(decompositions, stats, removed, rule=rule, **options)
    report = compress(model, Method("gram", allocation, options=options), removed, stats, decompositions=decompositions)
    assert report.ranks == selection.ranks
    total = sum(math.prod(found.shape) for found in decompositions.values())
    assert round(report.achieved * total) == selection.removed
    assert 0 <= selection.removed - selection.budget < 64  # m + n of the larger layers
    left = sum(p.numel() for p in given["model"].parameters()) - sum(p.numel() for p in model.parameters())
    assert left == selection.removed


@pytest.mark.parametrize("rule", ["magnitude_all", "most_negative"])
def test_a_rule_that_reorders_goes_through_surgery_with_the_decompositions_of_its_plan(rule, given):
    model, cuts, stats = copy.deepcopy(given["model"]), given["decompositions"], given["stats"]
    method = Method("gram", "zero_sum", options={"rule": rule})
    with pytest.raises(ValueError, match=f"rule = '{rule}' drops components in another order"):
        compress(model, method, 0.5, stats, decompositions=cuts)
    again, selection = plan(cuts, stats, 0.5, rule=rule)
    report = compress(model, method, 0.5, stats, decompositions=again)
    assert report.ranks == selection.ranks
    for name, rank in selection.ranks.items():
        if rank:
            kept = sum(torch.outer(cuts[name].left[:, i], cuts[name].right[i]) for i in selection.orders[name][:rank])
            torch.testing.assert_close(model.get_submodule(name).weight.double(), kept, rtol=0, atol=1e-5)


def test_other_rules_leave_the_decompositions_as_they_are(given):
    for rule in ("zero_sum", "magnitude", "sigma"):
        cuts, selection = plan(given["decompositions"], given["stats"], 0.5, rule=rule)
        assert all(cuts[name] is found for name, found in given["decompositions"].items())
        assert selection.orders == {}


def test_the_smallest_singular_values_of_all_layers_go_first(given):
    cuts = given["decompositions"]
    _, selection = plan(cuts, given["stats"], 0.4, rule="sigma", trace=True)
    sizes = [float(cuts[name].sigma[i]) for name, i, _, _ in selection.walk]
    assert sizes == sorted(sizes)


def test_what_cannot_work_is_said_before_anything_is_factorised(given, monkeypatch):
    monkeypatch.setattr(weightings, "decompose", lambda *_, **__: pytest.fail("decomposed"))
    model, stats = given["model"], given["stats"]
    for allocation, options, message in (
        ("zero_sum", {"rule": "best"}, "rule = 'best'"),
        ("zero_sum", {"floor": -1}, "floor = -1"),
        ("greedy", {"floor": -1}, "floor = -1"),
    ):
        with pytest.raises(ValueError, match=message):
            compress(model, Method("gram", allocation, options=options), 0.4, stats)
    with pytest.raises(ValueError, match="removed = 0.4 cannot be met"):
        plan(decompose_lazily(model, stats), stats, 0.4, floor=1)
    without = copy.deepcopy(stats)
    without["head"].grad = None
    with pytest.raises(ValueError, match="layer 'head' needs the statistic 'grad'"):
        plan(decompose_lazily(model, stats), without, 0.4)


@pytest.mark.parametrize(
    ("allocation", "options", "named"),
    [
        ("zero_sum", {"flor": 0.1}, "unknown entry 'flor'"),
        ("greedy", {"rule": "sigma"}, "unknown entry 'rule'"),
        ("learned", {"step": 3}, "unknown entry 'step'"),
    ],
)
def test_misspelt_options_are_found_before_anything_is_decomposed(allocation, options, named):
    method = Method("gram", allocation, options=options)
    with pytest.raises(ValueError, match=named):
        check_arguments(method, dict(task_loss=classification_loss, batches=[1], validation=None))
