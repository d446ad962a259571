"""Contract of every allocation: whoever adds one to `ALLOCATIONS` inherits these tests."""

import pytest
import torch

from prehab_lib.allocation import ALLOCATIONS, allocation_named
from prehab_lib.budget import break_even_rank, rank_for
from prehab_lib.weightings import decompose

every_allocation = pytest.mark.parametrize("allocation", ALLOCATIONS)
SHAPES = {"a": (24, 24), "b": (48, 24), "c": (16, 40), "thin": (1, 24)}


@pytest.fixture(scope="module")
def decompositions():
    torch.manual_seed(0)
    return {name: decompose(torch.randn(shape), None, "identity") for name, shape in SHAPES.items()}


@every_allocation
@pytest.mark.parametrize("removed", [0.2, 0.4, 0.6, 0.8])
def test_ranks_fit_their_layers_and_the_budget(allocation, removed, decompositions):
    ranks = ALLOCATIONS[allocation](decompositions, removed)
    assert set(ranks) == set(SHAPES) and ranks["thin"] is None
    fat = {name: shape for name, shape in SHAPES.items() if ranks[name] is not None}
    assert all(1 <= ranks[name] <= break_even_rank(shape) for name, shape in fat.items())
    kept = sum(ranks[name] * (m + n) for name, (m, n) in fat.items())
    assert kept <= (1 - removed) * sum(m * n for m, n in fat.values()) or all(ranks[name] == 1 for name in fat)


@every_allocation
def test_the_same_question_gets_the_same_answer(allocation, decompositions):
    assert ALLOCATIONS[allocation](decompositions, 0.5) == ALLOCATIONS[allocation](decompositions, 0.5)


@every_allocation
@pytest.mark.parametrize("removed", [0, 1, -0.1, "40", float("nan")])
def test_bad_removed_is_refused(allocation, removed, decompositions):
    with pytest.raises(ValueError, match="removed = "):
        ALLOCATIONS[allocation](decompositions, removed)


def test_uniform_is_the_formula(decompositions):
    ranks = ALLOCATIONS["uniform"](decompositions, 0.4)
    assert {name: ranks[name] for name in "abc"} == {name: rank_for(SHAPES[name], 0.4) for name in "abc"}


def test_unknown_allocation_names_the_known_ones():
    with pytest.raises(ValueError, match="allocation = 'even' is not known.*uniform"):
        allocation_named("even")
