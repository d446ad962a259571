"""Runs of a grid: each is stored, resumed and read on its own; what an earlier grid left is told apart."""

import json
import os
from pathlib import Path

import pytest

from prehab_lib import __main__, run
from prehab_lib.report import report
from prehab_lib.runs import keys, plan, store, upstream

PARAMETERS = 'task: str = "cola"  # task\nlam: float = 0.1  # rank weight\n'
SCORES = """\
import os, pathlib
if task == "mrpc" and not os.environ.get("REPAIRED"):
    1 / 0
from prehab_lib.report.records import Results
results = Results("counted", data=task)
results.add(method="svd", removed=0.4, achieved=0.4, metric="accuracy", value=0.5, higher_is_better=True, seed=0,
            control=True, seconds=1.0, dataset=task)
results.save()
folder = pathlib.Path(os.environ["PREHAB_RUN_DIR"]) / "figures"
folder.mkdir()
(folder / "spectra.csv").write_text(task)
print(os.environ["PREHAB_NOTEBOOK"])
"""
READS = """\
from prehab_lib import upstream
print({name: result["about"]["data"] for name, result in upstream.results("04_bert").items()})
try:
    upstream.results("03_vit")
except ValueError as error:
    print(error)
"""


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "04_bert.ipynb", SCORES, parameters=PARAMETERS)
    (tmp_path / "params").mkdir()
    grid(tmp_path, "cola, sst2, mrpc")
    return tmp_path


def grid(home: Path, values: str):
    (home / "params" / "04_bert.lab.yaml").write_text(f"# why\ngrid: {{task: [{values}]}}\n")


def output_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def test_three_runs_of_one_notebook(home, write_notebook, capsys, monkeypatch):
    """One fails and is resumed alone, one is asked for alone, a notebook reads all, a smaller grid leaves one over."""
    write_notebook(home / "notebooks" / "10_audit.ipynb", READS, needs=["04_bert"])
    lab = home / "runs" / "lab"
    assert run.main("lab", width=3) == 1
    said = capsys.readouterr().out
    assert said.index("04_bert makes 3 runs: cola, sst2, mrpc") < said.index("started")
    assert "lab: 2 ran, 0 cached, 1 failed, 1 skipped" in said
    assert "failed: 04_bert.mrpc: ZeroDivisionError: division by zero (see runs/.store/" in said
    assert "skipped: 10_audit: it needs 04_bert.mrpc" in said
    assert sorted(folder.name for folder in lab.iterdir()) == ["04_bert.cola", "04_bert.sst2", "figures", "logs"]
    assert output_of(lab / "04_bert.cola" / "04_bert.ipynb") == "04_bert\n"
    facts = json.loads((lab / "04_bert.sst2" / "run.json").read_text())
    assert facts["notebook"] == "04_bert" and facts["params"] == {"task": "sst2", "lam": 0.1}
    assert {file.relative_to(lab).as_posix(): file.read_text() for file in lab.glob("figures/**/*.csv")} == {
        "figures/04_bert.cola/spectra.csv": "cola",
        "figures/04_bert.sst2/spectra.csv": "sst2",
    }

    monkeypatch.setenv("REPAIRED", "1")
    before = (lab / "04_bert.cola" / "run.json").stat().st_mtime_ns
    assert run.main("lab", width=2) == 0
    said = capsys.readouterr().out
    assert "lab: 2 ran, 2 cached, 0 failed, 0 skipped" in said and "  ran: 04_bert.mrpc, 10_audit\n" in said
    assert (lab / "04_bert.cola" / "run.json").stat().st_mtime_ns == before
    read = output_of(lab / "10_audit" / "10_audit.ipynb").splitlines()
    assert read[0] == "{'04_bert.cola': 'cola', '04_bert.sst2': 'sst2', '04_bert.mrpc': 'mrpc'}"
    assert read[1].startswith('10_audit reads 03_vit: declare it, {"prehab": {"needs": ["03_vit"]}}')

    assert run.main("lab", ["04"], {"task": "sst2"}) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "already up to date: 1 of 1 runs are stored"

    grid(home, "cola, sst2")
    assert run.main("lab", ["04"]) == 0
    said = capsys.readouterr().out
    assert "note      04_bert.mrpc is no run of the profile as its params file stands: the report leaves it out" in said
    assert "already up to date: 2 of 2 runs are stored" in said
    report.write("lab")
    text = (lab / "report.md").read_text()
    assert "Left out, for params/04_bert.lab.yaml as it stands makes no such run: 04_bert.mrpc." in text
    assert "accuracy, cola" in text and "accuracy, sst2" in text and "accuracy, mrpc" not in text
    assert sorted(file.name for file in (lab / "tables").iterdir()) == [
        "04_bert_accuracy_cola.csv",
        "04_bert_accuracy_sst2.csv",
    ]
    assert report.copy_figures("lab")[0] == 2
    assert sorted(folder.name for folder in (home / "figures" / "lab").iterdir()) == ["04_bert.cola", "04_bert.sst2"]


def test_a_run_outside_the_grid_is_told_before_it_starts(home, capsys, monkeypatch):
    monkeypatch.setattr(run.Pool, "work", lambda self: {item.name: run.Outcome("cached") for item in self.waiting})
    assert run.main("lab", ["04"], {"task": "rte"}) == 0
    assert "04_bert.rte is no run of the profile as its params file stands" in capsys.readouterr().out
    assert run.main("lab", ["04"], {"lam": 0.5}) == 0
    said = capsys.readouterr().out
    assert "no run of the profile" not in said and "already up to date: 3 of 3 runs" in said


def test_a_long_grid_is_counted_and_not_listed(home, capsys, monkeypatch):
    (home / "params" / "04_bert.lab.yaml").write_text("# why\ngrid: {lam: 0..39, task: [cola, sst2]}\n")
    monkeypatch.setattr(run.Pool, "work", lambda self: {item.name: run.Outcome("cached") for item in self.waiting})
    assert run.main("lab") == 0
    said = capsys.readouterr().out
    assert "04_bert makes 80 runs: lam=0.0,task=cola, lam=0.0,task=sst2, " in said and said.splitlines()[0].endswith(
        " and 70 more"
    )


def test_another_notebooks_params_file_does_not_stop_a_run_or_a_report(home, write_notebook, monkeypatch):
    write_notebook(home / "notebooks" / "05_other.ipynb", "1")
    (home / "params" / "05_other.lab.yaml").write_text("grid: {nothing: [1]}\n")
    monkeypatch.setattr(run.Pool, "work", lambda self: {item.name: run.Outcome("cached") for item in self.waiting})
    assert run.main("lab", ["04"]) == 0
    assert __main__.main(["run", "lab"]) == 2


def test_a_waiting_run_is_looked_up_once_until_there_is_room(home, monkeypatch):
    pool = run.Pool(store.Store(home / "runs"), plan.runs(home, "lab", [], {}), 1, print)
    asked = []
    monkeypatch.setattr(keys, "key", lambda chosen, upstream: asked.append(chosen.name) or chosen.name)
    started = []
    monkeypatch.setattr(run.Pool, "_start", lambda self, chosen, key: started.append(chosen))
    for _ in range(5):
        for waiting in list(pool.waiting):
            pool._consider(waiting)
    assert asked == ["04_bert.cola", "04_bert.sst2", "04_bert.mrpc"]
    pool.slots.leave(started.pop())
    pool._consider(pool.waiting[0])  # the code may have changed meanwhile: the key is made anew before the start
    assert asked[3:] == ["04_bert.sst2"] and [chosen.name for chosen in started] == ["04_bert.sst2"]


def test_only_the_runs_of_that_notebook_are_read(tmp_path, monkeypatch):
    for name, notebook in (
        ("04_bert.cola", "04_bert"),
        ("04_bert.rte", "04_bert"),
        ("03_vit", "03_vit"),
        ("00_a", "00_a"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"notebook": notebook}))
        if name != "00_a":
            (tmp_path / name / "result.json").write_text(json.dumps({"from": name}))
    monkeypatch.setenv("PREHAB_RUNS", str(tmp_path))
    monkeypatch.setenv("PREHAB_NEEDS", '["00_a", "03_vit", "04_bert.cola"]')  # rte is of an earlier grid
    assert upstream.results("04_bert") == {"04_bert.cola": {"from": "04_bert.cola"}}
    assert upstream.results("03_vit") == {"03_vit": {"from": "03_vit"}}
    assert upstream.results("00_a") == {}


def test_nothing_is_read_outside_a_run(monkeypatch):
    monkeypatch.delenv("PREHAB_NEEDS", raising=False)
    assert upstream.results("04_bert") == {}


def test_a_stored_run_is_published_under_whatever_name_the_plan_gives_it(tmp_path):
    """The same parameters with and without a grid share a key; each name has its files, the figures apart."""
    kept = store.Store(tmp_path)
    part = kept.begin("key")
    (part / "figures").mkdir()
    (part / "figures" / "a.png").write_text("png")
    (part / "run.json").write_text(json.dumps({"key": "key", "notebook": "04_bert", "files": ["figures/a.png"]}))
    kept.finish("key", good=True)
    for name in ("04_bert", "04_bert.cola"):
        kept.publish("key", "lab", name)
    found = sorted(
        Path(folder, file).relative_to(tmp_path / "lab").as_posix()
        for folder, _, files in os.walk(tmp_path / "lab")
        for file in files
    )
    assert found == ["04_bert.cola/run.json", "04_bert/run.json", "figures/04_bert.cola/a.png", "figures/a.png"]
    assert kept.outside("lab", {"04_bert": ["04_bert.cola"]}) == ["04_bert"]
    assert kept.outside("lab", {"04_bert": ["04_bert"]}) == ["04_bert.cola"]
    assert kept.outside("lab", {"03_vit": ["03_vit"]}) == []
