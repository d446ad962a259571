"""A plan as data: what is written is read back, and what is wrong is refused in one sentence."""

import copy
import json
import shutil

import pytest

from prehab_lib import __main__
from prehab_lib.runs import plan
from prehab_lib.runs.plan import Price

PARAMETERS = 'task: str = "cola"  # task\nlam: float = 0.1  # rank weight\nseeds: list = [0, 1]  # seeds\n'


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    write_notebook(tmp_path / "notebooks" / "04_bert.ipynb", "1", parameters=PARAMETERS)
    write_notebook(tmp_path / "notebooks" / "05_reads.ipynb", "1", needs=["04_bert"])
    audit = write_notebook(tmp_path / "notebooks" / "10_audit.ipynb", "1")
    content = json.loads(audit.read_text())
    content["metadata"]["prehab"] = {"last": True}
    audit.write_text(json.dumps(content))
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "04_bert.lab.yaml").write_text("# why\ngrid: {task: [cola, sst2]}\n")
    return tmp_path


def test_a_plan_is_read_back_as_it_was(home):
    planned = plan.runs(home, "lab", [], {}, threads=3)
    planned = [plan.replace(run, price=Price(1.5, 700, None, "measured"), note="") for run in planned]
    data = plan.as_data(planned)
    assert plan.from_data(json.loads(json.dumps(data)), home) == planned
    assert data["format"] == 1 and data["profile"] == "lab"
    assert [one["name"] for one in data["runs"]] == ["04_bert.cola", "04_bert.sst2", "05_reads", "10_audit"]
    assert data["runs"][2] == {
        "name": "05_reads",
        "notebook": "notebooks/05_reads.ipynb",
        "params": {},
        "needs": ["04_bert.cola", "04_bert.sst2"],
        "last": False,
        "threads": 3,
        "gpu": 0,
        "minutes": 1.5,
        "memory_mb": 700,
        "gpu_memory_gb": None,
        "priced": "measured",
    }
    assert data["runs"][3]["last"] is True and data["runs"][0]["params"]["task"] == "cola"


def test_a_plan_is_of_one_profile(home):
    mixed = plan.runs(home, "lab", ["04"], {}) + plan.runs(home, "smoke", ["04"], {})
    with pytest.raises(ValueError, match="one profile, not of 2"):
        plan.as_data(mixed)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda data: data.update(format=2), "has format 2, not 1"),
        (lambda data: data.pop("profile"), "lacks its profile"),
        (lambda data: data["runs"][0].update(notebook="notebooks/09_gone.ipynb"), "no notebooks/09_gone.ipynb here"),
        (lambda data: data["runs"][0].update(notebook="notebooks/../x.ipynb"), "no notebooks/../x.ipynb here"),
        (lambda data: data["runs"][0]["params"].update(lam="much"), "lam = 'much'"),
        (lambda data: data["runs"][0]["params"].update(lamm=1.0), 'did you mean "lam"'),
        (lambda data: data["runs"].pop(1), "05_reads needs 04_bert.sst2, which does not stand before it"),
        (lambda data: data["runs"].reverse(), "05_reads needs 04_bert.cola, which does not stand before it"),
        (lambda data: data["runs"].append(data["runs"][0]), "04_bert.cola stands twice"),
        (lambda data: data["runs"][0].update(name="../04_bert"), "../04_bert is no name for a run of 04_bert"),
        (lambda data: data["runs"][0].update(name="04_bert./x"), "04_bert./x is no name for a run of 04_bert"),
        (lambda data: data["runs"][0].update(name="05_reads.cola"), "05_reads.cola is no name for a run of 04_bert"),
        (lambda data: data["runs"][0].update(threads=0), "threads = 0"),
        (lambda data: data["runs"][0].update(threads=True), "threads = True"),
        (lambda data: data["runs"][0].update(gpu=2), "gpu = 2"),
        (lambda data: data["runs"][0].update(minutes="long"), "minutes = 'long'"),
        (lambda data: data["runs"][0].pop("memory_mb"), "memory_mb = None"),
        (lambda data: data["runs"][0].pop("name"), "has no name"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_sentence(home, change, sentence):
    shutil.copy(home / "notebooks" / "04_bert.ipynb", home / "x.ipynb")  # it is there, but no notebook of the project
    data = copy.deepcopy(plan.as_data(plan.runs(home, "lab", [], {})))
    change(data)
    with pytest.raises(ValueError) as caught:
        plan.from_data(data, home)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [[], None, "plan"])
def test_what_is_no_plan_is_refused(home, data):
    with pytest.raises(ValueError, match="format None"):
        plan.from_data(data, home)


def test_the_command_prints_the_runs_and_writes_them(home, capsys):
    assert __main__.main(["plan", "lab", "--threads", "2", "--json", "plan.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "threads", "GPU", "minutes", "memory", "GPU", "memory", "from", "needs"]
    assert lines[1].split() == ["04_bert.cola", "2", "0", "?", "?", "unknown"]
    assert lines[3].endswith("unknown  04_bert.cola, 04_bert.sst2") and lines[4].endswith("unknown  all others")
    assert lines[5:] == ["lab: 4 runs, not priced", "written: plan.json"]
    planned = plan.from_data(json.loads((home / "plan.json").read_text()), home)
    assert [run.threads for run in planned] == [2] * 4
    assert not (home / "runs").exists()
    assert __main__.main(["plan", "lab", "--json", "nowhere/plan.json"]) == 2
    said = capsys.readouterr()
    assert said.err == "prehab_lib: there is no folder nowhere to write plan.json to: make it\n" and said.out == ""


def names(home, *options: str) -> dict[str, dict]:
    assert __main__.main(["plan", "lab", "04", "--json", "plan.json", *options]) == 0
    return {run["name"]: run["params"] for run in json.loads((home / "plan.json").read_text())["runs"]}


def test_a_grid_of_the_command_line_is_laid_over_the_params_file(home):
    assert list(names(home, "--grid", "lam=[0.01, 1e-1]")) == [
        f"04_bert.task={task},lam={lam}" for task in ("cola", "sst2") for lam in (0.01, 0.1)
    ]
    assert list(names(home, "--grid", "task=[mrpc]")) == ["04_bert.mrpc"]  # instead of the file's
    assert list(names(home, "--grid", "lam=[1]", "-p", "task=rte")) == ["04_bert.task=rte,lam=1.0"]
    (home / "params" / "04_bert.lab.yaml").write_text("# why\nlam: 0.5\n")
    assert [params["lam"] for params in names(home, "--grid", "lam=[1, 2]").values()] == [1, 2]
    assert list(names(home, "--grid", "lam=0..1")) == ["04_bert.lam=0.0", "04_bert.lam=1.0"]


def test_a_grid_of_a_list_is_no_grid_of_its_values(home):
    (home / "params" / "04_bert.lab.yaml").write_text("# why\n")
    assert [params["seeds"] for params in names(home, "-p", "seeds=[3, 4]").values()] == [[3, 4]]
    assert [params["seeds"] for params in names(home, "--grid", "seeds=[[3, 4], [5]]").values()] == [[3, 4], [5]]


def test_one_seed_a_run_where_a_notebook_has_a_list_of_seeds(home):
    lab = home / "params" / "04_bert.lab.yaml"
    lab.write_text("# why\nseeds: [7, 8, 9]\n")
    runs = names(home, "--grid", "seed=0..2")
    assert {name: params["seeds"] for name, params in runs.items()} == {f"04_bert.seed={n}": [n] for n in range(3)}
    assert all("seed" not in params for params in runs.values())
    lab.write_text("# why\ngrid: {seed: 0..2, lam: [1, 2]}\n")
    assert [params["seeds"] for params in names(home).values()] == [[0], [0], [1], [1], [2], [2]]
    assert list(names(home, "-p", "seeds=[2]")) == ["04_bert.seed=2,lam=1.0", "04_bert.seed=2,lam=2.0"]
    assert list(names(home, "-p", "seed=2")) == ["04_bert.seed=2,lam=1.0", "04_bert.seed=2,lam=2.0"]
    several = names(home, "-p", "seeds=[2, 3]", "-p", "lam=1")
    assert [params["seeds"] for params in several.values()] == [[2, 3]]
    assert len(names(home, "--grid", "seed=[5]")) == 2
    assert [params["seeds"] for params in names(home, "--grid", "seeds=[[5, 6]]").values()] == [[5, 6]] * 2


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--grid", "lam=[0.1, -1]"], "--grid: 04_bert: lam = -1"),
        (["--grid", "lam=0.1"], "--grid: lam = 0.1: give a list of values"),
        (["--grid", "lmm=[1]"], 'did you mean "lam"'),
        (["--grid", "lam=[1]", "--grid", "lam=[2]"], "--grid lam is given twice"),
        (["--grid", "lam=[1]", "-p", "lam=2"], "lam stands in -p and in --grid"),
        (["--grid", "seed=[1]", "-p", "seeds=[2]"], "seed stands in -p and in --grid"),
        (["--grid", "seed=[1]", "--grid", "seeds=[[1]]"], "seed and seeds set the same parameter"),
        (["--grid", "seed=[a]"], "--grid: 04_bert: seeds = 'a'"),
        (["--grid", "lam=0..600"], "--grid makes 1202 runs, more than 1000"),
        (["-p", "seed=3"], 'did you mean "seeds"'),
        (["-p", "grid={lam: [1]}"], "or as --grid, -p gives one value"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_sentence(home, capsys, options, sentence):
    assert __main__.main(["run", "lab", "04", *options]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (home / "runs").exists()
