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
seeds: list = [0]      # of the draws
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


def planned(home, overrides=None, axes=None) -> dict[str, dict]:
    runs = plan.runs(home, "lab", [], overrides, axes)
    return {run.name.removeprefix("04_bert_glue").removeprefix("."): run.params for run in runs}


def test_one_parameter_makes_a_run_for_each_value(home):
    lab(home, "grid: {task: [cola, sst2, mrpc]}\nlam: 7\n")
    runs = planned(home)
    assert list(runs) == ["cola", "sst2", "mrpc"] == [params["task"] for params in runs.values()]
    assert {params["lam"] for params in runs.values()} == {7} and "grid" not in runs["cola"]
    lab(home, "grid: {seed: 0..2}\n")  # both ends are in it
    assert {name: params["seeds"] for name, params in planned(home).items()} == {f"seeds={n}": [n] for n in range(3)}
    lab(home, "grid: {seed: 3 .. 3}\n")
    assert list(planned(home)) == ["seeds=3"]
    lab(home, "lam: 7\n")
    assert list(planned(home)) == [""]
    (plain,) = plan.runs(home, "lab", [], {"task": "sst2"})
    lab(home, "lam: 7\ngrid: {task: [cola, sst2]}\n")
    cola, sst2 = plan.runs(home, "lab")
    assert keys.key(plain, {}) == keys.key(sst2, {}) != keys.key(cola, {})  # that of the same parameters without a grid
    assert (plain.name, sst2.name) == ("04_bert_glue", "04_bert_glue.sst2")


def test_several_parameters_make_every_combination_of_the_notebooks_own_parameters(home):
    lab(home, "grid:\n  task: [cola, sst2]\n  lam: [0, 1e-1]\n  seed: -1..1\n")
    runs = planned(home)
    assert len(runs) == 12 and runs["task=sst2,lam=0.1,seeds=-1"]["seeds"] == [-1]
    assert isinstance(runs["task=cola,lam=0.0,seeds=1"]["lam"], float)
    notebook = home / "notebooks" / "04_bert_glue.ipynb"
    points = expand(notebook, {"grid": {"removed": [[0.2], [0.2, 0.6]], "limit": [None, 3]}}, {}, "here")
    pairs = [(removed, limit) for removed in ([0.2], [0.2, 0.6]) for limit in (None, 3)]
    expected = [parameters.resolve(notebook, {"removed": removed, "limit": limit}) for removed, limit in pairs]
    assert [params for _, params in points] == expected


def test_a_list_of_grids_is_one_after_another(home):
    lab(home, "grid:\n- {lam: [0, 1], seed: 0..1}\n- {task: [sst2], lam: [0], seed: [0]}\nlimit: 3\n")
    runs = planned(home)
    first = [f"lam={lam},seeds={seed}" for lam in (0.0, 1.0) for seed in (0, 1)]
    assert list(runs) == [*first, "task=sst2,lam=0.0,seeds=0"]
    assert {params["limit"] for params in runs.values()} == {3}
    assert [params["task"] for params in runs.values()] == ["cola"] * 4 + ["sst2"]
    assert len(planned(home, {"lam": 1.0})) == 3  # both grids narrowed to it
    lab(home, "grid:\n- {lam: [0, 1]}\n- {lam: [1, 2]}\n")
    with pytest.raises(ValueError, match="two grids make the run lam=1.0: keep it in one of them"):
        planned(home)
    lab(home, "grid: []\n")
    with pytest.raises(ValueError, match="must map parameters to lists"):
        planned(home)


def test_the_command_line_stands_for_the_values_of_a_parameter(home):
    lab(home, "grid: {task: [cola, sst2], seed: 0..1}\nlam: 0.3\n")
    chosen = planned(home, {"task": "sst2"})
    assert list(chosen) == ["task=sst2,seeds=0", "task=sst2,seeds=1"]
    assert chosen.items() <= planned(home).items()  # the same runs, so the same results
    other = planned(home, {"lam": 0.5})
    assert len(other) == 4 and {params["lam"] for params in other.values()} == {0.5}
    assert list(planned(home, {"task": "rte", "seeds": [9]})) == ["task=rte,seeds=9"]
    typed = planned(home, axes={"seed": [5], "lam": [0.1, 0.2]})  # one replaces values of the grid, one a plain value
    assert list(typed)[:2] == ["task=cola,seeds=5,lam=0.1", "task=cola,seeds=5,lam=0.2"] and len(typed) == 4


WRONG = [
    ("grid: {tsk: [cola]}", ['no parameter "tsk"', 'did you mean "task"']),
    ("grid: {task: []}", ["task = []", "list of values"]),
    ("grid: {lam: [1, 1.0]}", ["two runs that are called lam=1.0"]),
    ("grid: {task: cola}", ["task = 'cola'", "list of values"]),
    ("grid: {seed: 3}", ["seed = 3", "0..4"]),
    ("grid: {seed: 4..0}", ["seed = '4..0'", "smaller"]),
    ("grid: {seed: 0..1.5}", ["seed = '0..1.5'", "range of whole numbers"]),
    ("grid: {seed: [1], seeds: [[2]]}", ["seed and seeds"]),
    ("grid: {model: 0..1}", ["model = 0", "string"]),
    ("grid: {seed: 0..99999999999999999999}", ["more than 1000 runs"]),
    ("grid: {seed: 0..99, task: [a, b, c, d, e, f, g, h, i, j, k]}", ["1100 runs"]),
    ("grid: {removed: [0.2, 0.4]}", ["removed = 0.2", "list"]),
    ("grid: {removed: [[0.2], [1.5]]}", ["removed = 1.5", "less than 1"]),
    ("grid: {model: [tiny, Tiny]}", ["two runs that are called Tiny"]),
    *[(f"grid: {grid}", ["must map parameters"]) for grid in ("[task]", "{}", "")],
    ("grid: {1: [2]}", ["the key 1 is no text"]),
    ("task: cola\ngrid: {task: [cola]}", ["task stands in the grid and outside it"]),
    ("grid: {task: [cola]}\ngrid: {task: [sst2]}", ['"grid" stands there twice']),
]


def test_a_wrong_grid_is_refused_in_one_sentence_before_anything_starts(home, capsys):
    clock = time.monotonic()
    for text, words in WRONG:
        lab(home, text + "\n")
        assert __main__.main(["run", "lab"]) == 2, text
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and said.out == "", text
        assert all(word in said.err for word in ["04_bert_glue.lab.yaml", *words]), (text, said.err)
    assert not (home / "runs").exists() and time.monotonic() - clock < 10

    lab(home, "grid: {task: [cola, sst2]}\n")
    for words, sentence in [
        (["-p", "task=3"], "task = 3: it must be a valid string"),
        (["-p", "grid={task: [cola]}"], 'has no parameter "grid"'),
        (["-p", "task=cola", "--grid", "task=[sst2]"], "task stands in -p and in --grid"),
        (["--grid", "lam=[1]", "--grid", "lam=[2]"], "--grid lam is given twice"),
        (["-p", "lam=1", "-p", "lam=2"], "-p lam is given twice"),
    ]:
        assert __main__.main(["run", "lab", *words]) == 2, words
        assert sentence in capsys.readouterr().err, words


def test_a_name_says_its_values_in_short_safe_words():
    points = [{}, {"task": "SST-2"}, {"seeds": [-1]}, {"lr": 1e-05}, {"flip": True, "limit": None}]
    points.append({"task": "cola", "lam": 0.1})
    short = ["", "SST-2", "seeds=-1", "lr=1e-05", "flip=true,limit=null", "task=cola,lam=0.1"]
    assert [suffix(point) for point in points] == short
    odd = ["a/b", "../models/bert-base-uncased/", "a b", "a:b", "é", "", ".", "..", "cola.", "a=b", "a,b", "x" * 200]
    odd.append("\n")
    names = [suffix({"model": value}) for value in odd] + [suffix({"removed": value}) for value in ([0.2], [0.2, 0.4])]
    names += [suffix({"model": value, "λ": 0.1, "removed": [0.2] * 40}) for value in odd]
    assert all(NAME.fullmatch(name) and len(name) <= 64 for name in names), names
    assert len({name.casefold() for name in names}) == len(names)
    assert suffix({"model": "../models/bert-base-uncased/"}).startswith("bert-base-uncase-")
