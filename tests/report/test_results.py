"""One table of all records of a profile."""

import json

import pandas
import pytest

from prehab_lib.report import finished, report, results
from tests.profiles import ABOUT, enter, vit_records, write_run


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """runs/laptop with the ViT's run, two of a grid and one without scores."""
    enter(tmp_path, monkeypatch)
    for task, seconds, removed in (("cola", 3.0, [0.2]), ("sst2", 4.0, [0.4])):
        record = dict(method="svd", removed=0.2, achieved=0.2, value=1.0, seed=0, control=False, dataset=task)
        record |= dict(metric="accuracy", higher_is_better=True, seconds=1.0)
        about = ABOUT | {"settings": "{...}", "notebook": "04_bert"}
        folder = write_run(tmp_path, f"04_bert.{task}", [record, record | {"seed": 1}], about=about)
        facts = json.loads((folder / "run.json").read_text())
        facts |= {"params": {"task": task, "removed": removed, "lam": 0.1}, "seconds": seconds, "peak_memory_mb": 700}
        (folder / "run.json").write_text(json.dumps(facts))
    write_run(tmp_path, "01_none")
    return tmp_path / "runs" / "laptop"


def test_every_record_of_every_run_is_a_row(lab):
    table = results.frame(finished.read(lab))
    assert len(table) == len(vit_records()) + 4
    bert = table[table.notebook == "04_bert"]
    assert list(bert.run) == ["04_bert.cola"] * 2 + ["04_bert.sst2"] * 2 and list(bert.seed) == [0, 1, 0, 1]
    assert list(bert.param_task) == ["cola", "cola", "sst2", "sst2"]
    assert list(bert.param_removed) == ["[0.2]", "[0.2]", "[0.4]", "[0.4]"]
    assert "param_lam" not in table  # the same in all runs
    assert list(bert.about_seconds) == [3, 3, 4, 4] and set(bert.about_memory_mb) == {700}
    assert set(table.about_commit) == {ABOUT["commit"]} and set(table.about_torch) == {ABOUT["versions"]["torch"]}
    assert not {"about_settings", "about_versions", "about_notebook"} & set(table)
    assert list(table)[:4] == ["run", "notebook", "method", "arm"] and list(table)[-1] == "protocol"
    assert list(table.value[:8]) == [record["value"] for record in vit_records()[:8]]


def test_both_files_hold_it_and_the_report_names_them(lab):
    report.write("laptop")
    written = pandas.read_csv(lab / "results.csv"), pandas.read_parquet(lab / "results.parquet")
    assert [len(table) for table in written] == [len(vit_records()) + 4] * 2
    assert list(written[0]) == list(written[1])
    assert "one a row: results.csv, results.parquet" in (lab / "report.md").read_text()
    assert not [file for file in lab.iterdir() if file.name.startswith(".")]


def test_a_parameter_that_is_text_here_and_a_number_there(lab):
    for name, value in (("cola", 3), ("sst2", "all")):
        file = lab / f"04_bert.{name}" / "run.json"
        facts = json.loads(file.read_text())
        facts["params"]["limit"] = value
        file.write_text(json.dumps(facts))
    assert results.write(lab, finished.read(lab))
    column = pandas.read_parquet(lab / "results.parquet").param_limit
    assert list(column.dropna()) == ["3", "3", "all", "all"] and column.isna().sum() == len(vit_records())


def test_no_scores_no_table(lab):
    assert results.write(lab, finished.read(lab))
    for file in lab.glob("*/result.json"):
        file.unlink()
    assert not results.write(lab, finished.read(lab))
    assert not list(lab.glob("results.*"))
