"""The paper's sums: what disagrees is what the errata say, and a changed digit does not go unseen."""

import pytest

from prehab_lib.report import arithmetic, paper


def test_only_what_the_errata_explain_disagrees():
    found = {name: check(paper.records()) for name, check in arithmetic.CHECKS.items()}
    counts = dict(printed_changes=32, averages=16, repeats=7, memory_labels=3)
    counts |= dict(lora_gain=1, strongest_lambda=1, runtime=1)
    assert {name: len(checks) for name, checks in found.items()} == counts
    wrong = {one.place: round(one.computed, 2) for checks in found.values() for one in checks if not one.agrees}
    assert wrong.keys() == arithmetic.KNOWN
    assert sorted(wrong.values()) == [0.58, 0.81, 5.0, 8.91, 56.78]
    arithmetic.verify()


def test_a_changed_number_is_caught_and_the_sum_that_breaks_is_named():
    for table, method, removed, sentence in (
        ("II", "Prehab-SVD", 0.2, ": Table II prints 1.93"),
        ("IV", "Prehab-SVD", 0.6, ": Table IV prints -29.8"),
        ("V", "SVD-LLM", 0.4, ": Table V"),
        ("IV", "ASVD", 0.2, "; restore the file"),  # no sum depends on it
    ):
        records = paper.records()
        wanted = {"table": table, "method": method, "ratio_removed": removed, "lora": False}
        changed = next(record for record in records if wanted.items() <= record.items())
        changed["value"] *= 1.5
        with pytest.raises(ValueError, match=f"not as the paper printed it{sentence}"):
            arithmetic.verify(records)


def test_memory_by_hand_and_columns_that_look_copied():
    labels = {one.place[1]: one for one in arithmetic.memory_labels(paper.records())}
    assert arithmetic.LLAMA_BLOCKS == 6_476_005_376
    assert labels[0.2].printed == 10.2 and round(labels[0.2].computed, 2) == 10.14
    assert all(one.agrees for one in labels.values())
    twins = arithmetic.twins(paper.records())
    assert ("GFWSVD", 0.2, "QNLI", "QQP", 0.828) in twins and ("GFWSVD", 0.4, "QNLI", "QQP", 0.809) in twins
    assert all(score > 0 for *_, score in twins)  # SVD's two zeros are no coincidence
