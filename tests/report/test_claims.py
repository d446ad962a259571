"""A claim counts its cases, prints one line, and is kept only where a runner asks for it."""

import json

import numpy as np
import pandas
import pytest

from prehab_lib.report.claims import claim

SIDES = dict(paper="+2.5 % to +69.6 %", ours="tiny ViT, seeds [0, 1]")
TAIL = " | paper +2.5 % to +69.6 % | ours: tiny ViT, seeds [0, 1]; compare sign and order, not size\n"


def test_one_line_says_how_often_it_holds(capsys, monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    for holds, of, verdict in (
        (pandas.Series([1.0, 2.0, -1.0]).gt(0), "ratios", "holds at 2 of 3 ratios"),
        (np.array([True, True]), "", "holds at 2 of 2"),
        ([False, False], "seeds", "does not hold: 0 of 2 seeds"),
        (True, "", "holds at 1 of 1"),
        (np.bool_(False), "", "does not hold: 0 of 1"),
    ):
        claim("Table II: prehab beats SVD-LLM", holds, of=of, **SIDES)
        assert capsys.readouterr().out == "Table II: prehab beats SVD-LLM: " + verdict + TAIL


def test_claims_are_appended_to_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PREHAB_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PREHAB_NOTEBOOK", "03_vit")
    claim("first", [True, False], **SIDES)
    claim("second", False, **SIDES)
    lines = [json.loads(line) for line in (tmp_path / "run" / "claims.jsonl").read_text().splitlines()]
    assert [(line["sentence"], line["holds"], line["cases"]) for line in lines] == [("first", 1, 2), ("second", 0, 1)]
    assert lines[0]["each"] == [True, False] and lines[0]["notebook"] == "03_vit"


def test_what_is_not_a_verdict_is_refused():
    for holds in ([], [0.3, 0.2], "yes", [True, None], 1):
        with pytest.raises(ValueError, match="Table II"):
            claim("Table II", holds, **SIDES)
