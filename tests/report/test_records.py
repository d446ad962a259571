"""Scores are checked when they are recorded, and written only where a runner asks for it."""

import json
import sys

import numpy as np
import pandas
import pytest

from prehab_lib.report import records

ROW = dict(method="svd_llm", removed=0.4, achieved=0.41, metric="top1_percent", value=71.5)
ROW |= dict(higher_is_better=True, seed=0, control=False, seconds=1.5)


@pytest.fixture
def results(monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    return records.Results("top-1 on 100 held-out pairs", model="tiny ViT", data="digit pairs")


def test_nothing_is_written_without_a_runner(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.add(**ROW)
    assert results.save() is None
    assert list(tmp_path.iterdir()) == []


def test_saved_results_carry_their_birth_certificate(tmp_path, monkeypatch):
    monkeypatch.setenv("PREHAB_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("PREHAB_PROFILE", "laptop")
    monkeypatch.setenv("PREHAB_NOTEBOOK", "03_vit")
    results = records.Results("top-1", model="tiny ViT")
    results.add(**ROW, lora=True, paper_table="II")
    results.add(**ROW | {"control": True})
    saved = json.loads(results.save().read_text())
    assert saved["protocol"] == "top-1"
    assert saved["records"][0] == ROW | {"lora": True, "paper_table": "II"}
    about = saved["about"]
    assert (about["profile"], about["notebook"], about["model"]) == ("laptop", "03_vit", "tiny ViT")
    assert about["versions"]["python"] == sys.version.split()[0]
    assert about["versions"]["numpy"] == np.__version__
    assert about["peak_memory_mb"] > 10 and about["device_name"]
    assert pandas.read_parquet(tmp_path / "records.parquet").control.tolist() == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.parquet", "result.json"]


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


def test_an_extra_column_keeps_one_type(results):
    results.add(**ROW, lam=0.1)
    results.add(**ROW, lam=None)
    with pytest.raises(ValueError, match="lam must be a number"):
        results.add(**ROW, lam="none")
    assert len(results.frame()) == 2


def test_array_scalars_become_plain_numbers(results):
    assert list(results.frame().columns) == list(records.FIELDS)  # also without a record
    results.add(**ROW | {"value": np.float32(0.5), "control": np.bool_(True), "seed": np.int64(3)})
    record = results.records[0]
    assert [type(record[name]) for name in ("value", "control", "seed")] == [float, bool, int]
