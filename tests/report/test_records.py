"""Scores and claims are checked when they are recorded, and written only where a runner asks for it."""

import json
import sys

import numpy as np
import pandas
import pytest

from prehab_lib.report import records
from prehab_lib.report.claims import claim

ROW = dict(method="svd_llm", removed=0.4, achieved=0.41, metric="top1_percent", value=71.5)
ROW |= dict(higher_is_better=True, seed=0, control=False, seconds=1.5)
SIDES = dict(paper="+2.5 % to +69.6 %", ours="tiny ViT, seeds [0, 1]")
TAIL = " | paper +2.5 % to +69.6 % | ours: tiny ViT, seeds [0, 1]; compare sign and order, not size\n"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    return records.Results("top-1 on 100 held-out pairs", model="tiny ViT", data="digit pairs")


@pytest.fixture
def run(tmp_path, monkeypatch):
    for name, value in (("RUN_DIR", str(tmp_path)), ("PROFILE", "laptop"), ("NOTEBOOK", "03_vit")):
        monkeypatch.setenv(f"PREHAB_{name}", value)
    return tmp_path


def test_nothing_is_written_without_a_runner(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.add(**ROW)
    assert results.save() is None and list(tmp_path.iterdir()) == []


def test_saved_results_carry_their_birth_certificate(run):
    results = records.Results("top-1", model="tiny ViT")
    results.add(**ROW, lora=True, paper_table="II")
    results.add(**ROW | {"control": True})
    saved = json.loads(results.save().read_text())
    about = saved["about"]
    assert (saved["protocol"], saved["records"][0]) == ("top-1", ROW | {"lora": True, "paper_table": "II"})
    assert (about["profile"], about["notebook"], about["model"]) == ("laptop", "03_vit", "tiny ViT")
    assert about["versions"]["python"] == sys.version.split()[0]
    assert about["versions"]["numpy"] == np.__version__
    assert about["peak_memory_mb"] > 10 and about["device_name"]
    assert [record["control"] for record in saved["records"]] == [False, True]
    assert [path.name for path in run.iterdir()] == ["result.json"]


def test_a_wrong_field_is_named(results):
    wrong = [("value", value) for value in (float("nan"), float("inf"), np.float32("nan"), True, None)]
    wrong += [("removed", value) for value in (1.0, 40, "0.4")]
    wrong += [("control", 1), ("control", None), ("seed", 0.5), ("seed", None), ("method", 3)]
    wrong += [("seconds", -1.0), ("note", [1, 2])]
    for field, value in wrong:
        with pytest.raises(ValueError, match=field):
            results.add(**ROW | {field: value})
    for field in ROW:
        with pytest.raises(ValueError, match=f"{field} must be a"):
            results.add(**{name: value for name, value in ROW.items() if name != field})
    assert results.records == []
    with pytest.raises(ValueError, match="protocol"):
        records.Results(" ")


def test_a_column_keeps_one_type_and_array_scalars_become_plain(results):
    assert list(results.frame().columns) == list(records.FIELDS)  # also without a record
    results.add(**ROW | {"value": np.float32(0.5), "control": np.bool_(True), "seed": np.int64(3)})
    assert [type(results.records[0][name]) for name in ("value", "control", "seed")] == [float, bool, int]
    results.add(**ROW, lam=0.1)
    results.add(**ROW, lam=None)
    with pytest.raises(ValueError, match="lam must be a number"):
        results.add(**ROW, lam="none")
    assert len(results.frame()) == 3


def test_a_claim_says_in_one_line_how_often_it_holds(capsys, monkeypatch):
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
    for holds in ([], [0.3, 0.2], "yes", [True, None], 1):
        with pytest.raises(ValueError, match="Table II"):
            claim("Table II", holds, **SIDES)


def test_claims_are_appended_to_the_run(run):
    claim("first", [True, False], **SIDES)
    claim("second", False, **SIDES)
    lines = [json.loads(line) for line in (run / "claims.jsonl").read_text().splitlines()]
    assert [(line["sentence"], line["holds"], line["cases"]) for line in lines] == [("first", 1, 2), ("second", 0, 1)]
    assert lines[0]["each"] == [True, False] and lines[0]["notebook"] == "03_vit"
