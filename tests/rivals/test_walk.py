"""The selection rule against a slow reference, and what is true of every walk."""

import math
import random
from fractions import Fraction

import pytest
import torch

from prehab_lib.budget import break_even_rank
from prehab_lib.rivals.zero_sum import RULES, select
from tests.slow_selection import chosen, crowd, instance, reachable, slowly


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("replan", [False, True])
def test_a_slow_reference_finds_the_same_ranks(rule, replan):
    dense = repaired = 0
    for seed, given in enumerate([*map(instance, range(60 if replan else 200)), *map(crowd, range(3))]):
        found, expected = chosen(given, rule=rule, replan=replan), slowly(**given, rule=rule, replan=replan)
        assert found.ranks == expected["ranks"] and list(found.ranks) == list(given["shapes"]), seed
        assert found.walk == expected["steps"] and found.planned == expected["planned"]
        gone = {n: set(range(min(given["shapes"][n]))) - set(kept) for n, kept in expected["kept"].items()}
        shipped = sum(given["changes"][name][i] for name, those in gone.items() for i in those)
        assert found.shipped == pytest.approx(shipped, abs=1e-12)
        for name, kept in expected["kept"].items():
            order = found.orders.get(name, range(min(given["shapes"][name])))
            assert sorted(order[: found.ranks[name]]) == kept
        dense, repaired = dense + (None in found.ranks.values()), repaired + found.replans
    assert dense > 20 and (repaired > 2) == replan


@pytest.mark.parametrize("rule", RULES)
def test_ranks_keep_their_floor_and_what_is_removed_overshoots_by_less_than_a_drop(rule):
    for seed in range(100):
        given = instance(seed)
        found = chosen(given, rule=rule)
        total = sum(map(math.prod, given["shapes"].values()))
        assert found.budget == math.floor(Fraction(str(given["removed"])) * total)
        saved, largest = 0, 0
        for name, (m, n) in given["shapes"].items():
            rank = found.ranks[name]
            unit, most = m + n, break_even_rank((m, n))
            if given["accounting"] == "remap":
                unit, most = max(m, n), min(m, n)
                assert rank is not None or most == 1  # every other layer is factorised
            saved += 0 if rank is None else m * n - rank * unit
            largest = max(largest, unit)
            assert rank is None or max(1, math.ceil(Fraction(str(given["floor"])) * most)) <= rank <= most
        assert found.removed == saved
        assert 0 <= found.removed - found.budget < largest


def test_of_each_layer_the_last_components_go_one_by_one():
    for seed in range(50):
        given = instance(seed)
        for rule in ("zero_sum", "magnitude", "sigma"):
            walk = chosen(given, rule=rule).walk
            for name, shape in given["shapes"].items():
                dropped = [component for layer, component, _, _ in walk if layer == name]
                assert dropped == list(range(min(shape)))[::-1][: len(dropped)]


def test_a_rule_for_all_components_takes_the_lowest_of_all():
    """Without floors that stop it: whatever stays scores no lower than whatever went."""
    draw = random.Random(0)
    shapes = {f"h.{i}": (20, 20) for i in range(3)}
    changes = {name: torch.tensor([draw.gauss(0, 1) for _ in range(20)]) for name in shapes}
    for rule, score in (("magnitude_all", abs), ("most_negative", float)):
        found = select(changes, shapes, 0.3, rule=rule, trace=True)
        went = {(name, i) for name, i, _, _ in found.walk}
        stayed = {(name, i) for name in shapes for i in range(20)} - went
        assert max(score(float(changes[n][i])) for n, i in went) <= min(score(float(changes[n][i])) for n, i in stayed)
        assert all(sorted(order) == list(range(20)) for order in found.orders.values())
        assert all(order != list(range(20)) for order in found.orders.values())


def sums(found) -> list[float]:
    return [running for _, _, _, running in found.walk]


def test_the_sum_stays_within_the_largest_change_while_there_is_a_choice():
    checked = 0
    for seed in range(100):
        given = instance(seed) | {"accounting": "remap", "floor": 0.0}
        most = Fraction(reachable(given["shapes"], 0, "remap"), sum(map(math.prod, given["shapes"].values())))
        given["removed"] = math.floor(most * 900) / 1000
        found = chosen(given)
        largest = max(abs(x) for values in given["changes"].values() for x in values)
        left = {name: len(values) for name, values in given["changes"].items()}
        for name, component, _, running in found.walk:
            tails = [given["changes"][n][rank - 1] for n, rank in left.items() if rank > 1]
            if not (any(x >= 0 for x in tails) and any(x < 0 for x in tails)):
                break
            assert abs(running) <= largest + 1e-6
            left[name], checked = component, checked + 1
    assert checked > 300


def test_alternating_changes_of_one_size_never_sum_to_more():
    a = 0.5
    shapes = {f"h.{i}": (16, 16) for i in range(4)}
    changes = {f"h.{i}": torch.tensor([a * (-1) ** (j + i) for j in range(16)]) for i in range(4)}
    for removed in (0.2, 0.5, 0.8):
        assert max(map(abs, sums(select(changes, shapes, removed, trace=True)))) <= a


def test_changes_of_one_sign_are_taken_by_size():
    for seed in range(100):
        given = instance(seed)
        given["changes"] = {name: [abs(x) for x in values] for name, values in given["changes"].items()}
        balanced, by_size = chosen(given, rule="zero_sum"), chosen(given, rule="magnitude")
        assert balanced.ranks == by_size.ranks and balanced.walk == by_size.walk


def test_the_balance_is_better_than_by_size_alone():
    """What the second queue is for: the sum it ends with is far smaller."""
    ends = {"zero_sum": 0.0, "magnitude": 0.0}
    for seed in range(20):
        given = crowd(seed, removed=0.5)
        for rule in ends:
            ends[rule] += abs(chosen(given, rule=rule).shipped)
    assert ends["zero_sum"] < 0.3 * ends["magnitude"]


def test_the_order_of_the_dicts_does_not_matter():
    for seed in range(20):
        given, draw = instance(seed), random.Random(seed)
        for rule in RULES:
            found = chosen(given, rule=rule)
            mixed = dict(given)
            for part in ("changes", "shapes", "sigma"):
                mixed[part] = dict(draw.sample(list(given[part].items()), len(given[part])))
            again = chosen(mixed, rule=rule)
            assert again.ranks == found.ranks and again.walk == found.walk
            assert list(again.ranks) == list(mixed["shapes"])


def test_equals_take_turns():
    shapes = {f"h.{i}": (16, 16) for i in (2, 10, 1)}
    found = select({name: torch.ones(16) for name in shapes}, shapes, 0.5, rule="magnitude", trace=True)
    assert [name for name, *_ in found.walk[:6]] == ["h.1", "h.10", "h.2"] * 2
    assert max(found.ranks.values()) - min(found.ranks.values()) <= 1


def test_the_walk_by_hand():
    """r* = 3 of 8: drops down to rank 4 give nothing back, the one to 3 gives 64 − 48 = 16."""
    shapes = {"a": (8, 8), "b": (8, 8), "gate": (1, 8)}
    changes = {"a": torch.tensor([9.0, 9, 9, 9, 1, -3, 2, 1]), "b": torch.tensor([9.0, 9, 9, 9, 9, -4, -1, -2])}
    found = select(changes, shapes, 0.1, trace=True)
    assert found.walk == [
        ("a", 7, 1, 1),  # the only one that rises
        ("b", 7, -2, -1),
        ("a", 6, 2, 1),
        ("b", 6, -1, 0),  # of −1 and −3
        ("a", 5, -3, -3),  # nothing rises: of −4 and −3
        ("a", 4, 1, -2),
        ("a", 3, 9, 7),
    ]
    assert found.budget == 13 and found.removed == 16  # ⌊0.1 · 136⌋: the gate counts although it stays dense
    assert found.ranks == {"a": 3, "b": None, "gate": None} and found.undone == ("b",)
    assert found.planned == 7 and found.shipped == 1 + 2 - 3 + 1 + 9
