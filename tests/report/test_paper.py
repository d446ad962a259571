"""The paper's tables: complete, unchanged, and consistent with the paper's own arithmetic wherever it shows any."""

import hashlib
import html
import json
import re
from dataclasses import fields

import pytest

from prehab_lib.budget import rank_for
from prehab_lib.report import errata, paper

# Every number with what it belongs to: a slip of a digit, even in a row nothing else depends on, changes it.
DIGEST = "02f9a435092333f645c3dbb58540dc4b0132ba07e75c014328f6bb34bfc9b9a1"
GLUE = ("CoLA", "SST-2", "MRPC", "RTE", "STS-B", "QNLI", "QQP")  # and the two MNLI columns, merged in the averages


def test_nothing_is_missing_and_nothing_was_edited():
    assert {name: len(paper.records(name)) for name in ("II", "III", "IV", "V")} == {
        "II": 29,
        "III": 160,
        "IV": 44,
        "V": 13,
    }
    assert len(paper.records()) == 246
    assert hashlib.sha256(json.dumps(paper.records(), sort_keys=True).encode()).hexdigest() == DIGEST


def test_every_number_has_its_own_address():
    for record in paper.records():
        key = {row: key for key, row in paper.ROWS.items()}[record["method"]]
        where = {name: record[name] for name in ("lora", "lam", "dataset", "metric")}
        assert paper.value(record["table"], key, record["ratio_removed"], **where) == record["value"]


def _recomputed(record: dict) -> float:
    """The change against SVD-LLM with the same dagger, from the two values."""
    base = paper.value(
        record["table"], "svd_llm", record["ratio_removed"], lora=record["lora"], dataset=record["dataset"]
    )
    if record["change_kind"].startswith("percent"):
        return 100 * (record["value"] / base - 1)
    return record["value"] - base


def test_printed_changes_recompute_but_for_one():
    changed = [record for record in paper.records() if record["printed_change"] is not None]
    assert len(changed) == 32
    wrong = []
    for record in changed:
        digits = 1 if record["change_kind"].startswith("percent") else {"III": 3}.get(record["table"], 2)
        # half a unit in the last place, and a hair for binary fractions
        if abs(_recomputed(record) - record["printed_change"]) > 0.5 * 10**-digits + 1e-9:
            wrong.append((record["table"], record["dataset"], record["ratio_removed"], record["printed_change"]))
    assert wrong == [("IV", "C4", 0.4, 56.7)]
    lone = next(record for record in changed if record["printed_change"] == 56.7)
    assert round(_recomputed(lone), 1) == 56.8


def test_table_v_repeats_six_values_of_table_ii():
    repeated = {(method, removed) for method in ("svd_llm", "prehab") for removed in (0.4, 0.5, 0.6)}
    for method, removed in repeated:
        lam = 0.1 if method == "prehab" else None
        assert paper.value("V", method, removed, lam=lam) == paper.value("II", method, removed)
    assert paper.value("V", "prehab", 0.4, lam=5) != paper.value("II", "prehab", 0.4)


def test_averages_of_table_iii_are_means_of_eight_tasks_but_for_two():
    off = {}
    rows = {(record["method"], record["ratio_removed"]) for record in paper.records("III")}
    assert len(rows) == 16
    for row, removed in rows:
        key = next(key for key, name in paper.ROWS.items() if name == row)
        score = {task: paper.value("III", key, removed, dataset=task) for task in (*GLUE, "MNLI-m", "MNLI-mm")}
        mean = (sum(score[task] for task in GLUE) + (score["MNLI-m"] + score["MNLI-mm"]) / 2) / 8
        printed = paper.value("III", key, removed, dataset="Average")
        if abs(mean - printed) > 0.001:  # entries and average are rounded to three digits each
            off[key, removed] = (printed, round(mean, 3))
    assert off == {("original", 0.0): (0.816, 0.814), ("fwsvd", 0.6): (0.584, 0.579)}


def test_the_errata_quote_the_tables():
    assert round(paper.value("II", "prehab", 0.6, lora=True) - paper.value("II", "svd_llm", 0.6, lora=True), 2) == 8.91
    at_60 = {lam: paper.value("V", "prehab", 0.6, lam=lam) for lam in (0.1, 5, 10)}
    assert max(at_60, key=at_60.get) == 5
    assert min(at_60, key=at_60.get) == 10
    for removed in (0.2, 0.4):
        scores = {paper.value("III", "gfwsvd", removed, dataset=task) for task in ("QNLI", "QQP")}
        assert len(scores) == 1
    copied = [record for record in paper.records("IV") if any("copied" in check for check in record["checks"])]
    assert len([record for record in copied if record["ratio_removed"] > 0]) == 30


def test_the_errata_are_filled_in_and_named_once():
    assert len(paper.ERRATA) >= 20
    assert len({row.item for row in paper.ERRATA}) == len(paper.ERRATA)
    for row in paper.ERRATA:
        for field in fields(row):
            assert getattr(row, field.name).strip(), f"{row.item}: {field.name} is empty"
        assert row.printed + row.cited + row.released != "–––", row.item
        assert row.topic in ("method", "numbers")


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((768, 768), (307, 230, 153)),
        ((2304, 768), (460, 345, 230)),
        ((3072, 768), (491, 368, 245)),
        ((4096, 4096), (1638, 1228, 819)),
        ((11008, 4096), (2388, 1791, 1194)),
        ((1024, 4096), (655, 491, 327)),
    ],
)
def test_worked_ranks_of_the_papers_models(shape, ranks):
    assert tuple(rank_for(shape, removed=removed) for removed in (0.2, 0.4, 0.6)) == ranks


def test_table_is_a_frame_in_our_words():
    frame = paper.table("II")
    row = frame[(frame.method == "prehab") & (frame.removed == 0.4) & ~frame.lora].iloc[0]
    assert (row["row"], row["value"], row["printed_change"]) == ("Prehab-SVD", 71.92, 4.09)
    assert frame.method.isin(paper.ROWS).all()
    frame.loc[:, "value"] = 0.0  # a caller's own copy
    assert paper.table("II")["value"].max() == 81.1


def test_short_names_and_rounded_fractions_find_their_number():
    assert paper.value("III", "prehab", 0.2, dataset="CoLA") == 0.492
    assert paper.value("III", "prehab", 0.2, dataset="GLUE dev / CoLA") == 0.492
    assert paper.value("IV", "asvd", 1 - 0.8, dataset="C4") == 15.93
    assert paper.value("II", "original", 0) == 81.1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("VI", "svd", 0.2), "choose one of II, III, IV, V"),
        (("II", "zs_svd", 0.2), "choose one of original, svd, fwsvd"),
        (("II", "asvd", 0.2), "it has original, svd, fwsvd, gfwsvd, svd_llm, prehab$"),
        (("II", "svd", 0.3), "removed = 0.3 here: it has 0.2, 0.4, 0.5, 0.6"),
        (("II", "svd", 0.4, True), "lora = True here: it has False"),
        (("III", "svd", 0.2), "say which dataset .CoLA, SST-2"),
        (("V", "prehab", 0.4), "say which lam .0.1, 5.0, 10.0"),
        (("III", "svd", 0.2, False, None, "WikiText-2"), "dataset = 'WikiText-2' here: it has CoLA"),
    ],
)
def test_a_wrong_address_is_one_sentence_that_lists_the_right_ones(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        paper.value(*arguments)


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match="table = 'I' is not"):
        paper.table("I")


def test_the_errata_as_html_lose_nothing_and_wrap():
    page = errata.to_html()
    text = html.unescape(re.sub(r"</?sub>", "", page)).replace("_", "")
    for row in paper.ERRATA:
        for entry in (row.item, row.printed, row.cited, row.released, row.ours):
            assert f">{entry.replace('_', '')}<" in text
    assert page.count("<tr>") == len(paper.ERRATA) + 1
    assert "nowrap" not in page and page == errata.to_html()
    assert "‖M‖<sub>*</sub>² / ‖M‖<sub>F</sub>²" in page and "nuclear_ratio" in page
    assert errata.to_html("method").count("<tr>") + errata.to_html("numbers").count("<tr>") == len(paper.ERRATA) + 2
    with pytest.raises(ValueError, match="sorted by method, numbers"):
        errata.to_html("typos")
