"""A profile on one page: tables, claims and verdicts of its runs, and all records in one table."""

import json
import subprocess
import sys

import pandas
import pytest

from prehab_lib import __main__
from prehab_lib.report import finished, report
from tests.profiles import ABOUT, enter, line, vit_records, write_run


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    """runs/laptop with the ViT's run, two of a grid and one without scores."""
    enter(tmp_path, monkeypatch)
    write_run(tmp_path, "03_vit", vit_records(), [line("attention is untouched")])
    for task, seconds, removed in (("cola", 3.0, [0.2]), ("sst2", 4.0, [0.4])):
        row = vit_records()[0] | dict(metric="accuracy", value=1.0, paper_table=None, dataset=task)
        about = ABOUT | {"settings": "{...}", "notebook": "04_bert"}
        folder = write_run(tmp_path, f"04_bert.{task}", [row, row | {"seed": 1}], about=about)
        change(folder, params={"task": task, "removed": removed, "lam": 0.1}, seconds=seconds, peak_memory_mb=700)
    write_run(tmp_path, "01_none")
    return tmp_path / "runs" / "laptop"


def change(folder, **facts):
    file = folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def written(profile) -> str:
    report.write(profile.name)
    return (profile / "report.md").read_text()


def test_tables_claims_and_makers_of_every_notebook(laptop, capsys):
    assert __main__.main(["report", "laptop"]) == 0
    assert capsys.readouterr().out == "written: runs/laptop/report.md\n"
    text = (laptop / "report.md").read_text()
    assert text.index("## Every claim with its verdict") < text.index("## 01_none") < text.index("## 03_vit")
    for part in (
        "| control (control, λ = 0) ",
        "| *the paper: prehab* ",
        "  - attention is untouched: **passes** (paper ; ours: tiny)",
        "- 03_vit: profile laptop, seeds [0, 1, 2, 3, 4], commit 0123456789abcdef, model small ViT",
        "torch 2.15.0",
        "seconds 3.0, memory_mb 700, scores on held-out pairs",
        "04_bert: accuracy, cola (higher is better)\n\nNot printed: it has no control row",
    ):
        assert part in text, part
    assert text.count("\n| svd_llm ") == 1 and "40.5 ± 0.79 (5)" in text
    write_run(laptop.parents[1], "03_vit", [one for one in vit_records() if not one["control"]])
    assert "Not judged: 03_vit: its scores beside Table II have no control row" in written(laptop)


def test_runs_of_a_grid_are_one_section(tmp_path, monkeypatch, write_notebook):
    monkeypatch.chdir(tmp_path)
    parameters = 'task: str = "cola"  # task\nlam: float = 0.1  # rank weight\n'
    write_notebook(tmp_path / "notebooks" / "04_bert.ipynb", "1", parameters=parameters)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "04_bert.lab.yaml").write_text("# why\ngrid: {task: [cola, sst2, mrpc]}\n")
    lab = tmp_path / "runs" / "lab"
    about = ABOUT | {"profile": "lab"}
    records = [one | {"paper_table": None} for one in vit_records()]
    # All score the same models: equal records are one measurement, whatever time they took.
    for task, status, seconds in (("cola", "passes", 9.0), ("sst2", "fails", 1.0), ("rte", "passes", 1.0)):
        claim = line("attention is untouched", status, profile="lab")
        timed = [one | {"seconds": seconds} for one in records]
        write_run(tmp_path, f"04_bert.{task}", timed, [claim], about | {"data": task}, "lab", "lab")
    text = written(lab)
    assert text.count("\n## 04_bert\n") == text.count("\n### ") == 1
    for part in (
        "40.5 ± 0.79 (5)",
        "Left out, for the params files make no such run: 04_bert.rte.",
        "- attention is untouched: **passes** (paper ; ours: tiny)",
        "- attention is untouched: **fails** (paper ; ours: tiny)",
    ):
        assert part in text, part
    assert "data rte" not in text
    records[0]["value"] += 1
    write_run(tmp_path, "04_bert.mrpc", records, (), about, "lab", "lab")
    assert "two values for svd at 40% removed, seed 0" in written(lab)


def test_every_record_of_every_run_is_a_row(laptop):
    table = report.long_table(finished.read(laptop))
    assert len(table) == len(vit_records()) + 4
    bert = table[table.notebook == "04_bert"]
    assert list(bert.run) == ["04_bert.cola"] * 2 + ["04_bert.sst2"] * 2 and list(bert.seed) == [0, 1, 0, 1]
    assert list(bert.param_task) == ["cola", "cola", "sst2", "sst2"]
    assert list(bert.param_removed) == ["[0.2]", "[0.2]", "[0.4]", "[0.4]"]
    assert list(bert.about_seconds) == [3, 3, 4, 4] and set(bert.about_memory_mb) == {700}
    assert set(table.about_commit) == {ABOUT["commit"]} and set(table.about_torch) == {ABOUT["versions"]["torch"]}
    assert not {"param_lam", "about_settings", "about_versions", "about_notebook"} & set(table)  # lam: alike in all
    assert list(table)[:4] == ["run", "notebook", "method", "arm"] and list(table)[-1] == "protocol"
    assert list(table.value[:8]) == [record["value"] for record in vit_records()[:8]]
    change(laptop / "04_bert.cola", params={"limit": 3})
    change(laptop / "04_bert.sst2", params={"limit": "all"})  # text here, a number there
    assert "one a row: results.csv, results.parquet" in written(laptop)
    csv, parquet = pandas.read_csv(laptop / "results.csv"), pandas.read_parquet(laptop / "results.parquet")
    assert list(csv) == list(parquet) and len(csv) == len(parquet) == len(table)
    assert parquet.param_limit.dropna().tolist() == ["3", "3", "all", "all"]
    for file in laptop.glob("*/result.json"):
        file.unlink()
    written(laptop)  # no score, no row
    assert (laptop / "results.csv").read_text().strip() == "" and pandas.read_parquet(laptop / "results.parquet").empty


def test_runs_of_other_parameters_than_the_params_files_give_now_are_named(tmp_path, monkeypatch, write_notebook):
    monkeypatch.chdir(tmp_path)
    cell = "steps: int = 1  # steps\nseeds: list = [0]  # of the draws\n"
    for name in ("01_a", "02_b"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "1", parameters=cell)
        place = write_run(tmp_path, name)
        change(place, params={"steps": 1, "seeds": [0]})
    assert "Not made with the parameters" not in written(place.parent)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "02_b.laptop.yaml").write_text("steps: 9\nseeds: [0, 1]\n")
    assert "Not made with the parameters of the params files: 02_b.\n" in written(place.parent)
    for text in ("[]", "7", "{", "\udcff"):
        (place / "run.json").write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match="02_b/run.json is not JSON: remove its folder and run"):
            report.write("laptop")


def test_a_damaged_result_names_its_folder(laptop, capsys):
    for name, change in (
        ("claims.jsonl", lambda line: line.pop("status")),
        ("result.json", lambda result: result["records"][0].pop("metric")),
        ("result.json", lambda result: result["records"][0].update(value="high")),
        ("result.json", lambda result: result["records"].insert(0, None)),
        ("result.json", lambda result: result.update(records=5)),
    ):
        file = laptop / "03_vit" / name
        whole = file.read_text()
        content = json.loads(whole)
        change(content)
        file.write_text(json.dumps(content))
        assert __main__.main(["report", "laptop"]) == 2, (name, content)
        assert "03_vit is damaged: remove this folder and run" in capsys.readouterr().err
        file.write_text(whole)


def test_nothing_to_report_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_vit.ipynb").write_text('{"cells": []}')
    monkeypatch.chdir(tmp_path)
    for word in ("report", "figures"):
        assert __main__.main([word, "laptop"]) == 2
        said = capsys.readouterr().err
        assert "python -m prehab_lib run laptop" in said and said.count("\n") == 1


def test_figures_are_copied_with_the_page_of_verdicts(laptop, tmp_path):
    (laptop / "figures").mkdir()
    (laptop / "figures" / "fig2.png").write_bytes(b"png")
    (laptop / "figures" / ".fig2.csv.123").write_text("torn")
    lines = "id,group,where,says,paper,ours,verdict,status\na,paper,Fig. 2,it grows,yes,tiny,supported: +1,supported\n"
    (laptop / "figures" / "verdicts.csv").write_text(lines)
    assert __main__.main(["figures", "laptop"]) == 0
    target = tmp_path / "figures" / "laptop"
    assert sorted(file.name for file in target.iterdir()) == ["fig2.png", "verdicts.csv", "verdicts.md"]
    assert "| Fig. 2 | it grows | yes | supported: +1 | tiny |" in (target / "verdicts.md").read_text()


def test_reports_import_no_torch(laptop):
    code = "import sys; from prehab_lib.report import report; report.write('laptop'); print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
