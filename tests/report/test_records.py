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
TAIL = " | paper +2.5 % to +69.6 % | ours: tiny ViT, seeds [0, 1]\n"


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


def test_a_column_keeps_one_type_and_array_scalars_become_plain(results):
    assert list(results.frame().columns) == list(records.FIELDS)  # also without a record
    results.add(**ROW | {"value": np.float32(0.5), "control": np.bool_(True), "seed": np.int64(3)})
    assert [type(results.records[0][name]) for name in ("value", "control", "seed")] == [float, bool, int]
    results.add(**ROW, lam=0.1)
    results.add(**ROW, lam=None)
    with pytest.raises(ValueError, match="lam must be a number"):
        results.add(**ROW, lam="none")
    assert len(results.frame()) == 3


def test_a_check_says_in_one_line_whether_it_passes(capsys, monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    for holds, status in (
        (pandas.Series([1.0, 2.0, -1.0]).gt(0), "fails"),
        (np.array([True, True]), "passes"),
        ([False, False], "fails"),
        (True, "passes"),
        (np.bool_(False), "fails"),
        (np.array(True), "passes"),
    ):
        claim("Eq. (6) is the gradient", holds, **SIDES)
        assert capsys.readouterr().out == f"Eq. (6) is the gradient: {status}" + TAIL
    for holds in ([], [0.3, 0.2], "yes", [True, None], 1):
        with pytest.raises(ValueError, match="Eq. \\(6\\)"):
            claim("Eq. (6)", holds, **SIDES)


def test_checks_are_appended_to_the_run(run):
    claim("first", [True, False], **SIDES)
    claim("second", True, **SIDES)
    lines = [json.loads(line) for line in (run / "claims.jsonl").read_text().splitlines()]
    assert [(line["sentence"], line["status"]) for line in lines] == [("first", "fails"), ("second", "passes")]
    assert lines[0].keys() == {"sentence", "status", "paper", "ours", "notebook", "profile"}
    assert lines[0]["notebook"] == "03_vit"


def test_a_curve_is_kept_as_what_effects_are_read_off(run):
    results = records.Results("top-1")
    results.curve(3, [0, 0.5], [np.float32(90.0), 40.0], "top1_percent", "digit pairs")
    results.curve(3, [0.0, 0.5], [np.e, np.e**2], "perplexity")
    digits, text = json.loads(results.save().read_text())["curves"]
    assert digits == {"dataset": "digit pairs", "seed": 3, "removed": [0.0, 0.5], "merits": [90.0, 40.0]}
    assert text["dataset"] == "" and text["merits"] == pytest.approx([-1, -2])
    for removed, values in (([0.1, 0.5], [1.0, 2.0]), ([0.0], [1.0]), ([0.0, 0.5], [1.0, float("nan")])):
        with pytest.raises(ValueError, match="a curve needs"):
            results.curve(0, removed, values, "top1_percent")
