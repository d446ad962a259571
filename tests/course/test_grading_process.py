"""A submission's process: what it can see, what it is told, and that nothing of it stays behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prehab_lib import grading_process
from prehab_lib.grading_process import Exercise, Limits, ask
from prehab_lib.needed_statements import needed, parse

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits and clean-up of Linux")


def notebook(folder: Path, *cells: str) -> Path:
    content = [{"cell_type": "code", "metadata": {}, "outputs": [], "source": cell} for cell in cells]
    file = folder / "answers.ipynb"
    file.write_text(json.dumps({"cells": content, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return file


def answer(folder: Path, source: str, limits: Limits | None = None):
    """What `probe` of a one-cell notebook answers to its only case."""
    asked = [Exercise("1.1", "probe", [(2,)])]
    return ask(notebook(folder, source), "answers", asked, limits or Limits(20))["1.1"]


SEES = """
import importlib.util, os, sys
def probe(x):
    names = ["exercises.ex00", "exercises.ex10", "budget"]
    found = [importlib.util.find_spec(f"prehab_lib.{name}") is not None for name in names]
    files = [name for _, _, names in os.walk("..") for name in names]
    return [sys.path, os.getcwd(), found, sorted(os.environ), sorted(n for n in files if n.startswith("ex"))]
"""


def test_no_solutions_no_repository_and_none_of_the_graders_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TEACHER", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path, here, found, variables, files = answer(tmp_path, SEES).answered.answers[0]
    assert str(ROOT) not in path and not any((Path(p) / "prehab_lib/exercises/ex00.py").exists() for p in path)
    assert not here.startswith(str(ROOT)) and not Path(here).exists()
    assert found == [False, False, True] and files == []
    assert "SECRET_OF_THE_TEACHER" not in variables and "PYTHONPATH" not in variables


def test_it_is_told_cases_and_no_answers(tmp_path):
    source = "import gc, json\ndef probe(x):\n    return [str(o) for o in gc.get_objects() if isinstance(o, dict) and 'cases' in o]"
    [told] = answer(tmp_path, source).answered.answers[0]
    assert json.loads(told.replace("'", '"')) == {"id": "1.1", "name": "probe", "cases": [[2]]}


@linux
def test_children_are_gone_also_those_that_left_their_session(tmp_path):
    marks = [tmp_path / "plain", tmp_path / "daemon"]
    loop = "import time; [(open({!r}, 'w').write(str(time.time())), time.sleep(0.05)) for _ in range(400)]"
    plain, daemon = ([sys.executable, "-c", loop.format(str(mark))] for mark in marks)
    source = f"""
import os, subprocess, time
def probe(x):
    subprocess.Popen({plain!r})
    subprocess.Popen({daemon!r}, start_new_session=True)
    while not all(map(os.path.exists, {list(map(str, marks))!r})):
        time.sleep(0.01)
    return 1
"""
    assert answer(tmp_path, source).answered.answers == [1]
    before = [mark.read_text() for mark in marks]
    time.sleep(0.3)
    assert [mark.read_text() for mark in marks] == before


@linux
def test_limits_are_set_on_memory_files_and_processes(tmp_path, monkeypatch):
    source = """
import resource
def probe(x):
    return [resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0] for name in ("DATA", "FSIZE", "CORE", "NPROC")]
"""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))  # else it may be 0 already
    monkeypatch.setattr(grading_process, "_processes", lambda: 4321)
    try:
        data, size, core, processes = answer(tmp_path, source, Limits(20, memory_gb=1.5)).answered.answers[0]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)
    assert (data, size, core) == (1.5 * 2**30, 2**26, 0)
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    assert processes == (4321 if most == resource.RLIM_INFINITY else min(4321, most))


@linux
def test_a_submission_may_start_some_processes_beside_those_that_are_there():
    there = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            there += len(os.listdir(place / "task")) * (place.stat().st_uid == os.getuid())
        except OSError:
            continue  # it has ended
    assert 50 < grading_process._processes() - there < 500


@linux
@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="the limit on processes does not bind root")
def test_a_fork_bomb_is_stopped(tmp_path):
    outcome = answer(tmp_path, "import os\ndef probe(x):\n    while True: os.fork()", Limits(5))
    assert outcome.ended or "BlockingIOError" in outcome.answered.trouble


@linux
def test_a_grader_that_is_killed_takes_the_submission_along(tmp_path):
    mark = tmp_path / "alive"
    loop = f"import time\ndef probe(x):\n    while True: open({str(mark)!r}, 'w').write(str(time.time())); time.sleep(0.05)"
    file = notebook(tmp_path, loop)
    script = f"""
from pathlib import Path
from prehab_lib.grading_process import Exercise, Limits, ask
ask(Path({str(file)!r}), "answers", [Exercise("1.1", "probe", [(2,)])], Limits(60))
"""
    grader = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    while not mark.exists():
        assert grader.poll() is None
        time.sleep(0.05)
    grader.kill()
    grader.wait()
    time.sleep(0.3)
    before = mark.read_text()
    time.sleep(0.3)
    assert mark.read_text() == before


def test_whole_notebooks_run_and_a_failing_cell_stops_only_itself(tmp_path):
    cells = ("STATE = [1]", "raise SystemExit", "globals()['STATE'].append(5)", "def probe(x): return STATE[-1] * x")
    asked = [Exercise("1.1", "probe", [(2,)])]
    for whole, wanted in ((True, 10), (False, 2)):
        outcome = ask(notebook(tmp_path, *cells), "answers", asked, Limits(20, whole=whole))["1.1"]
        assert outcome.answered.answers == [wanted]


@pytest.mark.parametrize(
    "returned, wanted",
    [
        ("'x' * 2**21", "too long"),
        ("[{1}]", None),
        ("(lambda a: (a.append(a), a)[1])([])", "RecursionError"),
        ("10**6000", "ValueError"),
    ],
)
def test_odd_answers_come_back_as_no_answers(tmp_path, returned, wanted):
    outcome = answer(tmp_path, f"def probe(x): return {returned}")
    trouble = outcome.answered.trouble or outcome.ended
    assert trouble is None and repr(outcome.answered.answers) == "[[set {1}]]" if wanted is None else wanted in trouble


NOTEBOOK = [
    "import math, torch\nfrom os import path as where",
    "scale = slow_training()\nother = 3",
    "%timeit x\nhelp?\n!ls",
    "def inner(y):\n    return [scale * z for z in y]\ntorch.set_seed(1)",
    "cache = {}\ncache['a'] = 1\nlater.append(2)",
    "class Table:\n    size = other",
    "unused = math.pi",
    "def answer(x):\n    def help(): return cache\n    return inner(x)\nprint('mine')\nscale",
    "def another(x): return torch.eye(x), Table",
    "%%bash\nls",
    "nonsense(",
]


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("answer", {(1, 0), (3, 0), (4, 0), (4, 1), (7, 0), (7, 1), (7, 2)}),
        ("another", {(0, 0), (1, 1), (3, 1), (5, 0), (8, 0)}),
        ("unknown", set()),
    ],
)
def test_what_an_answer_needs(name, wanted):
    statements, faults = parse(NOTEBOOK)
    cells = [statement.cell for statement in statements]
    place = {id(s): (s.cell, n - cells.index(s.cell)) for n, s in enumerate(statements)}
    found = {place[id(s)] for s in needed(statements, name)}
    assert found == wanted  # of cell 7, which defines the answer, all of it
    assert list(faults) == [10] and faults[10].startswith("SyntaxError")
