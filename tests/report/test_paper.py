"""The paper's tables and its errata: complete, each number at its own address, quoted as printed."""

import html
import re

import pytest

from prehab_lib.report import paper


def test_nothing_is_missing_and_nothing_was_edited():
    counts = {name: len(paper.records(name)) for name in ("II", "III", "IV", "V")}
    assert counts == {"II": 29, "III": 160, "IV": 44, "V": 13} and len(paper.records()) == 246
    for record in paper.records():  # every number has its own address
        where = {name: record[name] for name in ("lora", "lam", "dataset")}
        key = paper.KEYS[record["method"]]
        assert paper.value(record["table"], key, record["ratio_removed"], **where) == record["value"], record


def test_table_is_a_frame_in_our_words():
    frame = paper.table("II")
    row = frame[(frame.method == "prehab") & (frame.removed == 0.4) & ~frame.lora].iloc[0]
    assert (row["row"], row["value"], row["printed_change"]) == ("Prehab-SVD", 71.92, 4.09)
    assert frame.method.isin(paper.ROWS).all()
    frame.loc[:, "value"] = 0.0  # a caller's own copy
    assert paper.table("II")["value"].max() == 81.1
    assert paper.value("III", "prehab", 0.2, dataset="CoLA") == 0.492
    assert paper.value("III", "prehab", 0.2, dataset="GLUE dev / CoLA") == 0.492
    assert paper.value("IV", "asvd", 1 - 0.8, dataset="C4") == 15.93
    assert paper.value("II", "original", 0) == 81.1


def test_a_wrong_address_is_one_sentence_that_lists_the_right_ones():
    for arguments, sentence in (
        (("I", "svd", 0.2), "table = 'I' is not .* choose one of II, III, IV, V"),
        (("II", "asvd", 0.2), "choose one of original, svd, fwsvd, gfwsvd, svd_llm, prehab$"),
        (("II", "svd", 0.3), "Table II: removed = 0.3 is not known: choose one of 0.2, 0.4, 0.5, 0.6"),
        (("II", "svd", 0.4, True), "lora = True is not known: choose one of False"),
        (("III", "svd", 0.2), "say which dataset .CoLA, SST-2"),
        (("V", "prehab", 0.4), "say which lam .0.1, 5.0, 10.0"),
        (("III", "svd", 0.2, False, None, "WikiText-2"), "dataset = 'WikiText-2' is not known: choose one of CoLA"),
    ):
        with pytest.raises(ValueError, match=sentence):
            paper.value(*arguments)


def test_the_errata_are_filled_in_and_as_html_lose_nothing_and_wrap():
    rows = paper.errata()
    assert len(rows) == 29 and len({row["item"] for row in rows}) == len(rows)
    for row in rows:
        assert all(text.strip() for text in row.values()) and len(row) == 6, row["item"]
        assert row["printed"] + row["cited"] + row["released"] != "–––", row["item"]
        assert row["topic"] in ("method", "numbers"), row["item"]
    page = paper.errata_html()
    text = html.unescape(re.sub(r"</?sub>", "", page)).replace("_", "")
    for row in paper.errata():
        for entry in list(row.values())[1:]:
            assert f">{entry.replace('_', '')}<" in text
    assert page.count("<tr>") == len(paper.errata()) + 1 and "nowrap" not in page
    assert "‖M‖<sub>*</sub>² / ‖M‖<sub>F</sub>²" in page and "nuclear_ratio" in page
    both = paper.errata_html("method").count("<tr>") + paper.errata_html("numbers").count("<tr>")
    assert both == len(paper.errata()) + 2
    with pytest.raises(ValueError, match="choose one of method, numbers"):
        paper.errata_html("typos")
