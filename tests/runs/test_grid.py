"""A grid in a params file: the runs it makes, their names, and the sentences that refuse a wrong one."""

import re
import time

import pytest

from prehab_lib import __main__
from prehab_lib.runs import keys, plan
from prehab_lib.runs.grid import expand, suffix
from prehab_lib.tasks import parameters

PARAMETERS = """\
task: str = "cola"     # which task
seed: int = 0          # one seed
lam: float = 0.1       # rank weight
removed: list = [0.4]  # fractions
model: str = "tiny"    # name or folder
limit: int | None = 5  # rows, None for all
"""
NAME = re.compile(r"[A-Za-z0-9_+\-=,.]*[A-Za-z0-9_+\-=,]")  # plain on every file system, no dot at the end


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "04_bert_glue.ipynb", "print(task)", parameters=PARAMETERS)
    (tmp_path / "params").mkdir()
    return tmp_path


def lab(home, text: str):
    (home / "params" / "04_bert_glue.lab.yaml").write_text("# why\n" + text)


def planned(home, overrides=None):
    return {run.name: run.params for run in plan.runs(home, "lab", [], overrides or {})}


def test_one_parameter_makes_a_run_for_each_value(home):
    lab(home, "grid: {task: [cola, sst2, mrpc]}\nseed: 7\n")
    runs = planned(home)
    assert list(runs) == ["04_bert_glue.cola", "04_bert_glue.sst2", "04_bert_glue.mrpc"]
    assert [params["task"] for params in runs.values()] == ["cola", "sst2", "mrpc"]
    assert {params["seed"] for params in runs.values()} == {7}
    assert all("grid" not in params for params in runs.values())


def test_several_parameters_make_every_combination(home):
    lab(home, "grid:\n  task: [cola, sst2]\n  lam: [0, 1e-1]\n  seed: -1..1\n")
    runs = planned(home)
    assert len(runs) == 12
    assert (
        runs["04_bert_glue.task=sst2,lam=0.1,seed=-1"] | {"task": "sst2", "lam": 0.1, "seed": -1}
        == (runs["04_bert_glue.task=sst2,lam=0.1,seed=-1"])
    )
    assert isinstance(runs["04_bert_glue.task=cola,lam=0.0,seed=1"]["lam"], float)


def test_a_range_holds_both_ends(home):
    lab(home, "grid: {seed: 0..4}\n")
    assert [params["seed"] for params in planned(home).values()] == [0, 1, 2, 3, 4]
    assert "04_bert_glue.seed=0" in planned(home)
    lab(home, "grid: {seed: 3 .. 3}\n")
    assert list(planned(home)) == ["04_bert_glue.seed=3"]


def test_the_command_line_stands_for_the_values_of_a_parameter(home):
    lab(home, "grid: {task: [cola, sst2], seed: 0..1}\n")
    one = planned(home, {"task": "sst2"})
    assert list(one) == ["04_bert_glue.task=sst2,seed=0", "04_bert_glue.task=sst2,seed=1"]
    assert one.items() <= planned(home).items()  # the same runs, so the same results
    other = planned(home, {"lam": 0.5})
    assert len(other) == 4 and {params["lam"] for params in other.values()} == {0.5}
    assert list(planned(home, {"task": "rte", "seed": 9})) == ["04_bert_glue.task=rte,seed=9"]


def test_a_run_of_a_grid_has_the_key_of_the_same_parameters_without_one(home):
    (plain,) = plan.runs(home, "lab", [], {"task": "sst2"})
    lab(home, "grid: {task: [cola, sst2]}\n")
    cola, sst2 = plan.runs(home, "lab", [], {})
    assert keys.key(plain, {}) == keys.key(sst2, {}) != keys.key(cola, {})
    assert (plain.name, sst2.name, sst2.suffix, plain.suffix) == ("04_bert_glue", "04_bert_glue.sst2", "sst2", "")


def test_without_a_grid_nothing_is_named_differently(home):
    lab(home, "seed: 3\n")
    assert list(planned(home)) == ["04_bert_glue"]


def test_a_need_is_for_every_run_of_the_grid(home, write_notebook):
    write_notebook(home / "notebooks" / "10_audit.ipynb", "1", needs=["04_bert_glue"])
    lab(home, "grid: {task: [cola, sst2]}\n")
    runs = plan.runs(home, "lab", ["10"], {})
    assert [run.name for run in runs] == ["04_bert_glue.cola", "04_bert_glue.sst2", "10_audit"]
    assert runs[-1].needs == ("04_bert_glue.cola", "04_bert_glue.sst2")


@pytest.mark.parametrize(
    "text, words",
    [
        ("grid: {tsk: [cola]}", ['no parameter "tsk"', 'did you mean "task"']),
        ("grid: {task: []}", ["task has no values"]),
        ("grid: {task: [cola, sst2, cola]}", ["task has 'cola' twice"]),
        ("grid: {lam: [1, 1.0]}", ["lam has 1.0 twice"]),
        ("grid: {task: cola}", ["task = 'cola'", "list of values"]),
        ("grid: {seed: 3}", ["seed = 3", "0..4"]),
        ("grid: {seed: 4..0}", ["seed = 4..0", "smaller"]),
        ("grid: {seed: 0..1.5}", ["seed = '0..1.5'", "range of whole numbers"]),
        ("grid: {model: 0..1}", ["model = 0", "string"]),
        ("grid: {seed: 0..99999999999999999999}", ["100000000000000000000 runs", "mistyped"]),
        ("grid: {seed: 0..999999999}", ["1000000000 runs", "mistyped"]),
        ("grid: {seed: 0..99, task: [a, b, c, d, e, f, g, h, i, j, k]}", ["1100 runs"]),
        ("grid: {lam: [0.1, -1]}", ["lam = -1", "0 or more"]),
        ("grid: {removed: [0.2, 0.4]}", ["removed = 0.2", "list"]),
        ("grid: {removed: [[0.2], [1.5]]}", ["removed = 1.5", "between 0 and 1"]),
        ("grid: {model: [tiny, Tiny]}", ["share a folder"]),
        ("grid: [task]", ["must map parameters"]),
        ("grid: {}", ["must map parameters"]),
        ("grid:", ["must map parameters"]),
        ("grid: {1: [2]}", ["must map parameters"]),
        ("task: cola\ngrid: {task: [cola]}", ["task also stands outside"]),
        ("grid: {task: [cola]}\ngrid: {task: [sst2]}", ['"grid" stands there twice']),
    ],
)
@pytest.mark.parametrize("options", [[], ["-p", "task=cola", "-p", "lam=0.1"]])
def test_a_wrong_grid_is_refused_in_one_sentence_before_anything_starts(home, capsys, text, words, options):
    lab(home, text + "\n")
    clock = time.monotonic()
    assert __main__.main(["run", "lab", *options]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == ""
    assert all(word in said.err for word in ["04_bert_glue.lab.yaml", *words]), said.err
    assert not (home / "runs").exists()
    assert time.monotonic() - clock < 5


def test_a_refused_value_on_the_command_line_and_a_grid_there(home, capsys):
    lab(home, "grid: {task: [cola, sst2]}\n")
    for option, words in (("task=3", "task = 3 is not known"), ("grid={task: [cola]}", "-p grid: a grid is")):
        assert __main__.main(["run", "lab", "-p", option]) == 2
        assert words in capsys.readouterr().err


def test_a_parameter_called_grid_is_told_apart(home, write_notebook):
    write_notebook(home / "notebooks" / "04_bert_glue.ipynb", "1", parameters="grid: int = 3  # points a side\n")
    assert planned(home)["04_bert_glue"]["grid"] == 3
    lab(home, "grid: {grid: [1, 2]}\n")
    with pytest.raises(ValueError, match='has a parameter "grid"'):
        planned(home)


@pytest.mark.parametrize(
    "point, name",
    [
        ({}, ""),
        ({"task": "cola"}, "cola"),
        ({"method": "svd_llm"}, "svd_llm"),
        ({"task": "SST-2"}, "SST-2"),
        ({"seed": -1}, "seed=-1"),
        ({"lam": 0.1}, "lam=0.1"),
        ({"lr": 1e-05}, "lr=1e-05"),
        ({"flip": True, "limit": None}, "flip=true,limit=null"),
        ({"task": "cola", "lam": 0.1}, "task=cola,lam=0.1"),
    ],
)
def test_plain_values_are_read_in_the_name(point, name):
    assert suffix(point) == name


ODD = [
    "a/b",
    "../models/bert-base-uncased/",
    "a b",
    "a:b",
    "é",
    "",
    ".",
    "..",
    "cola.",
    "a=b",
    "a,b",
    "x" * 200,
    "a\nb",
]


def test_odd_values_have_short_safe_names_of_their_own():
    names = [suffix({"model": value}) for value in ODD] + [suffix({"removed": value}) for value in ([0.2], [0.2, 0.4])]
    names += [suffix({"model": value, "λ": 0.1, "removed": [0.2] * 40}) for value in ODD]
    assert all(NAME.fullmatch(name) and len(name) <= 64 for name in names), names
    assert len({name.casefold() for name in names}) == len(names)
    assert suffix({"model": "../models/bert-base-uncased/"}).startswith("bert-base-uncase-")
    assert suffix({"model": "x" * 200}) == suffix({"model": "x" * 200})


def test_every_combination_is_the_notebooks_own_parameters(home):
    notebook = home / "notebooks" / "04_bert_glue.ipynb"
    points = expand(notebook, {"grid": {"removed": [[0.2], [0.2, 0.6]], "limit": [None, 3]}}, {}, "here")
    assert [params for _, params in points] == [
        parameters.resolve(notebook, {"removed": removed, "limit": limit})
        for removed in ([0.2], [0.2, 0.6])
        for limit in (None, 3)
    ]
