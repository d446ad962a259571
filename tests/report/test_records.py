"""Scores are checked when they are recorded, and written only where a runner asks for it."""

import json
import subprocess
import sys

import numpy as np
import pandas
import pytest

from prehab_lib.report import records

ROW = dict(
    method="svd_llm",
    removed=0.4,
    achieved=0.41,
    metric="top1_percent",
    value=71.5,
    higher_is_better=True,
    seed=0,
    control=False,
    seconds=1.5,
)


@pytest.fixture
def results(monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    return records.Results("top-1 on 100 held-out pairs", model="tiny ViT", data="digit pairs")


def test_nothing_is_written_without_a_runner(results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREHAB_PROFILE", raising=False)
    results.add(**ROW)
    assert results.save() is None
    assert list(tmp_path.iterdir()) == []
    assert records.run_dir() is None
    assert records.profile() == "smoke"


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
    assert about["peak_memory_mb"] > 10
    assert about["device_name"]
    frame = pandas.read_parquet(tmp_path / "records.parquet")
    assert frame.control.tolist() == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.parquet", "result.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_a_score_that_is_no_number_is_refused(results, value):
    with pytest.raises(ValueError, match="value is"):
        results.add(**ROW | {"value": value})
    assert results.records == []


@pytest.mark.parametrize(
    "field, wrong",
    [
        ("removed", 1.0),
        ("removed", 40),
        ("removed", "0.4"),
        ("value", True),
        ("value", None),
        ("control", 1),
        ("control", None),
        ("seed", 0.5),
        ("seed", None),
        ("method", 3),
        ("seconds", -1.0),
        ("note", [1, 2]),
    ],
)
def test_a_wrong_field_is_named(results, field, wrong):
    with pytest.raises(ValueError, match=field):
        results.add(**ROW | {field: wrong})


def test_an_extra_column_keeps_one_type(results):
    results.add(**ROW, lam=0.1)
    results.add(**ROW, lam=None)
    with pytest.raises(ValueError, match="lam must be a number"):
        results.add(**ROW, lam="none")
    assert len(results.frame()) == 2


def test_array_scalars_become_plain_numbers(results):
    results.add(**ROW | {"value": np.float32(0.5), "control": np.bool_(True), "seed": np.int64(3)})
    record = results.records[0]
    assert [type(record[name]) for name in ("value", "control", "seed")] == [float, bool, int]


def test_a_protocol_is_required():
    with pytest.raises(ValueError, match="protocol"):
        records.Results(" ")


def test_an_empty_frame_has_its_columns(results):
    assert list(results.frame().columns) == list(records.FIELDS)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    records.write_json(path, {"good": 1})
    with pytest.raises(ValueError):
        records.write_json(path, {"bad": float("nan")})
    assert json.loads(path.read_text()) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_certificate_imports_nothing_heavy():
    code = (
        "import sys; from prehab_lib import records, claims; records.birth_certificate(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_commit_names_code_that_differs(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    assert records._commit() is None
    git("init", "-q")
    (tmp_path / "prehab_lib").mkdir()
    (tmp_path / "prehab_lib" / "a.py").write_text("a = 1\n")
    assert records._commit() == "no commit yet+dirty"
    git("add", ".")
    git("commit", "-q", "-m", "a")
    (tmp_path / "figure.png").write_text("not code")
    clean = records._commit()
    assert len(clean) == 40
    (tmp_path / "prehab_lib" / "a.py").write_text("a = 2\n")
    assert records._commit() == clean + "+dirty"
