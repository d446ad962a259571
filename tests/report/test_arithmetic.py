"""The paper's sums: what disagrees is what the errata say, and a changed digit does not go unseen."""

import copy

import pytest

from prehab_lib.report import arithmetic, paper


def test_only_what_the_errata_explain_disagrees():
    found = {name: check(paper.records()) for name, check in arithmetic.CHECKS.items()}
    assert {name: len(checks) for name, checks in found.items()} == {
        "printed_changes": 32,
        "averages": 16,
        "repeats": 7,
        "memory_labels": 3,
        "lora_gain": 1,
        "strongest_lambda": 1,
        "runtime": 1,
    }
    wrong = {one.place: round(one.computed, 2) for checks in found.values() for one in checks if not one.agrees}
    assert wrong.keys() == arithmetic.KNOWN
    assert sorted(wrong.values()) == [0.58, 0.81, 5.0, 8.91, 56.78]
    arithmetic.verify()


def another_digit(value: float) -> float:
    """The same number with its last digit changed."""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return float(text[:-1] + str((int(text[-1]) + 1) % 10))


@pytest.mark.parametrize("number", range(len(paper.records())))
def test_one_changed_digit_anywhere_is_caught(number):
    records = paper.records()
    records[number]["value"] = another_digit(records[number]["value"])
    with pytest.raises(ValueError, match="not as the paper printed it"):
        arithmetic.verify(records)


@pytest.mark.parametrize(
    ("table", "method", "removed", "sentence"),
    [
        ("II", "Prehab-SVD", 0.2, "Table II prints 1.93"),
        ("IV", "Prehab-SVD", 0.6, "Table IV prints -29.8"),
        ("V", "SVD-LLM", 0.4, "Table V"),
    ],
)
def test_a_sum_that_breaks_is_named(table, method, removed, sentence):
    records = paper.records()
    changed = next(
        one
        for one in records
        if (one["table"], one["method"], one["ratio_removed"]) == (table, method, removed) and not one["lora"]
    )
    changed["value"] *= 1.5
    with pytest.raises(ValueError, match=sentence):
        arithmetic.verify(records)


def test_a_swapped_label_is_caught_though_no_sum_knows_it():
    records = copy.deepcopy(paper.records())
    one, other = (
        record
        for record in records
        if record["table"] == "II" and record["method"] == "FWSVD" and record["ratio_removed"] < 0.5
    )
    one["value"], other["value"] = other["value"], one["value"]
    with pytest.raises(ValueError, match="restore the file"):
        arithmetic.verify(records)


def test_memory_by_hand():
    labels = {one.place[1]: one for one in arithmetic.memory_labels(paper.records())}
    assert arithmetic.LLAMA_BLOCKS == 6_476_005_376
    assert labels[0.2].printed == 10.2 and round(labels[0.2].computed, 2) == 10.14
    assert all(one.agrees for one in labels.values())


def test_columns_that_look_copied():
    twins = arithmetic.twins(paper.records())
    assert ("GFWSVD", 0.2, "QNLI", "QQP", 0.828) in twins and ("GFWSVD", 0.4, "QNLI", "QQP", 0.809) in twins
    assert all(score > 0 for *_, score in twins)  # SVD's two zeros are no coincidence
    assert len(arithmetic.copied(paper.records())) == 30
