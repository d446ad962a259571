"""Decompositions made on demand: the same bits, and no more of them alive than there is room for."""

import copy
import weakref
from unittest.mock import Mock

import pytest
import torch

from prehab_lib import weightings
from prehab_lib.methods import Method, method_named
from prehab_lib.scale.lazy import Shelf, decompose_lazily
from prehab_lib.scale.lean import factorise as lean
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.stack import everything, same

SEARCH = Method("gram", "sensitivity")


@pytest.fixture(scope="module")
def given():
    return everything()


@pytest.fixture
def alive(monkeypatch):
    """The number of decompositions in memory each time one more is made."""
    made, counts = [], []
    decompose = weightings.decompose

    def counted(*args, **how):
        found = decompose(*args, **how)
        made.append(weakref.ref(found))
        counts.append(sum(ref() is not None for ref in made))
        return found

    monkeypatch.setattr(weightings, "decompose", counted)
    return counts


def cut(given, method, **more):
    model = more.pop("model", None) or copy.deepcopy(given["model"])
    data = {name: given[name] for name in ("task_loss", "batches", "validation")}
    return model, compress(model, method, 0.5, given["stats"], **data, **more)


def test_uniform_surgery_has_one_decomposition_at_a_time(given, alive):
    cut(given, "svd_llm")
    assert alive == [1] * 7 and len(given["stats"]) == 8  # the gate stays dense: nobody looks at its factors
    alive.clear()
    model = copy.deepcopy(given["model"])
    cut(given, "svd_llm", model=model, decompositions=decompose_lazily(model, given["stats"]))
    assert alive == [1] * 7


@pytest.mark.parametrize("method", ["svd_llm", "svd_llm_update", "svd_llm_v2", "swift_svd", SEARCH], ids=str)
def test_every_method_says_the_same_with_and_without_room(method, given, alive):
    ruler = method_named(method).weighting
    whole = decompose_all(given["model"], given["stats"], ruler, kernel=lean)
    eager, planned = cut(given, method, decompositions=whole)
    for keep in (0, 2**31):
        alive.clear()
        model = copy.deepcopy(given["model"])
        lazy = decompose_lazily(model, given["stats"], ruler, keep=keep)
        _, report = cut(given, method, model=model, decompositions=lazy)
        assert report.ranks == planned.ranks
        assert same(model, eager)
        assert max(alive) <= (8 if keep else 1) + len(whole)  # `whole` is still held here
        assert len(alive) <= 2 * 8 or not keep  # with room, none is made more than twice


def test_shape_costs_nothing_and_a_spectrum_is_kept(given, alive):
    lazy = decompose_lazily(given["model"], given["stats"], keep=0)
    eager = decompose_all(given["model"], given["stats"], kernel=lean)
    assert {name: found.shape for name, found in lazy.items()} == {name: found.shape for name, found in eager.items()}
    assert len(alive) == len(eager)
    for name, found in lazy.items():
        assert torch.equal(found.sigma, eager[name].sigma) and found.tail_error(1) == eager[name].tail_error(1)
    assert len(alive) == len(eager) + len(lazy)
    assert torch.equal(lazy["head"].left, eager["head"].left) and torch.equal(lazy["head"].right, eager["head"].right)
    assert len(alive) == len(eager) + len(lazy) + 2  # without room, each look at the factors makes them again


def test_the_first_truncation_keeps_nothing_and_the_second_is_kept(given, alive):
    found = decompose_lazily(given["model"], given["stats"])["head"]
    first = found.truncate(3)
    assert len(alive) == 1 and not found.shelf.kept
    for number in (2, 2, 2):
        again = found.truncate(3)
        assert torch.equal(again.U, first.U) and torch.equal(again.V, first.V)
        assert len(alive) == number and list(found.shelf.kept) == [found]


def test_a_shelf_keeps_the_latest_that_fit(given):
    lazy = decompose_lazily(given["model"], given["stats"])
    one = next(iter(lazy.values())).whole()
    size = sum(part.numel() * 8 for part in (one.left, one.right, one.sigma))
    shelf, make = Shelf(keep=2 * size), Mock(return_value=one)
    for key in ("a", "b", "a", "c", "a", "b"):  # c pushes b out, not a
        shelf.get(key, make)
    assert make.call_count == 4 and list(shelf.kept) == ["a", "b"]


def test_of_other_weights_is_refused_and_of_the_same_is_not_made_to_see_it(given, alive):
    model = copy.deepcopy(given["model"])
    lazy = decompose_lazily(model, given["stats"])
    assert lazy["head"].is_of(model.head.weight) and not alive
    assert lazy["head"].is_of(model.head.weight.clone()) and len(alive) == 1
    with torch.no_grad():
        model.head.weight.add_(0.1)
    with pytest.raises(ValueError, match="'head' is of other weights"):  # the one on the shelf is
        compress(model, "svd_llm", 0.5, given["stats"], decompositions=lazy)


def test_a_problem_names_its_layer(given):
    model = copy.deepcopy(given["model"])
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    lazy = decompose_lazily(model, given["stats"])
    assert lazy["gate"].truncate(1).rank == 1
    with pytest.raises(ValueError, match="^layer 'head': the weight has NaN or infinite"):
        lazy["head"].truncate(1)
    before = model.blocks[0].up
    for decompositions in (None, lazy):
        with pytest.raises(ValueError, match="^layer 'head': the weight has NaN or infinite"):
            compress(model, "svd_llm", 0.5, given["stats"], decompositions=decompositions)
        assert model.blocks[0].up is before  # nothing was swapped


def test_a_spectrum_of_earlier_weights_chooses_no_ranks(given):
    """Its factors are off the shelf, its singular values are remembered: they are made again."""
    model = copy.deepcopy(given["model"])
    lazy = decompose_lazily(model, given["stats"], keep=0)
    before = {name: cut.sigma.clone() for name, cut in lazy.items()}
    with torch.no_grad():
        for module in list(model.modules()):
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(torch.rand_like(module.weight))
    assert all(lazy[name].is_of(model.get_submodule(name).weight) for name in lazy)
    assert not any(torch.equal(lazy[name].sigma, before[name]) for name in lazy)
