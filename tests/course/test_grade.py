"""Submissions of every kind, graded once: good, wrong, learnt by heart, hostile to the grader, and no notebook at all."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prehab_lib.exercises import answers, solved
from prehab_lib.exercises.answers import Answered
from tests.batch import alive, wait_for
from tests.beside import ROOT, load
from tests.conftest import write_notebook as notebook

grade = load("course/grade.py")
AUDIT = {"10_audit": ROOT / "notebooks" / "10_audit.ipynb"}
NAME = 'P = parameters.check("10_audit", globals())'
RIGHT = "def relative_gain(value, arrow):\n    return round(100 * arrow / (value - arrow), 1)"
SHOWN = solved("10.1").cases
KNOWN = dict(zip(SHOWN, (69.6, 9.7, -17.9, 2.5), strict=True))
CALLED = "relative_gain({:.5g}, {:.5g})".format(*SHOWN[0])
WITHHELD = "relative_gain({:.5g}, {:.5g})".format(*solved("10.1").withheld[0])
DEF = "def relative_gain(value, arrow):"
HEART = f"{DEF} return {KNOWN}.get((value, arrow), 0)"
LEARNT = f"right on the cases it was shown, not on others: {WITHHELD} gives 0, wanted 6.5"
PATCHES = [
    "import prehab_lib.exercises.checks as c, prehab_lib.exercises.answers as a",
    "class Patch:\n    c.check = print\n    a.same = a.blank = lambda *_: True",
    "class Equal(float):\n    __eq__ = lambda *_: True\n    __hash__ = None",
    f"{DEF}\n    print('exercise 10.1: passed')\n    return Equal(7)",
]
FORGES = """import json, os
class Forge:
    for fd in range(3, 20):
        try: os.write(fd, (json.dumps(dict(id='10.1', answers=[], trouble='passed')) + chr(10)).encode())
        except OSError: pass
"""
HELPERS = [
    "from math import *\nPER = 100",
    "def gain(v, b): return PER * b / (v - b)",
    "PER *= 1",
    f"{DEF} return round(gain(value, arrow), int(sqrt(1)))",
]
ELSEWHERE = ["%pip install nothing\n!ls\nimport math\n" + RIGHT, "raise RuntimeError('elsewhere')", "def broken(:"]
LAMBDA = "import math\nif True:\n    relative_gain = lambda v, b: round(float(100 * b / (v - b)), 1)"
MADE = "from functools import partial\nrelative_gain = partial(pow, 2)"
LACKS = f"{CALLED} stopped with AttributeError: 'float' object has no attribute 'sum'"
# student -> (cells that answer 10.1, verdict, how the hint begins)
STUDENTS = {
    "Ann": ([RIGHT], "passed", ""),
    "Bo by heart": ([HEART], "wrong", LEARNT),
    "Di loops": ([f"{DEF}\n    while True: pass"], "time limit", "the notebook's answers"),
    "Ed eats memory": ([f"{DEF} return len(bytearray(2**33))"], "stopped", f"{CALLED} stopped with MemoryError"),
    "Flo leaves": ([f"import sys\n{DEF} sys.exit()"], "stopped", f"{CALLED} stopped with SystemExit"),
    "Gil vanishes": ([f"import os\n{DEF} os._exit(0)"], "stopped", "it ended by itself"),
    "Hal patches": (PATCHES, "wrong", f"not yet: {CALLED} gives 7, wanted 69.6"),
    "Ida forges": ([FORGES, f"{DEF} return 0"], "stopped", "passed"),
    "Zoë 学": (ELSEWHERE, "passed", ""),
    "Lee errs": ([f"{DEF} return value.sum()"], "stopped", LACKS),
    "Moe forgets": ([RIGHT.replace("return ", "")], "wrong", "it returns nothing: is a return missing?"),
    "Liv lambda": ([LAMBDA], "passed", ""),
    "Mia makes it": ([MADE], "stopped", "relative_gain is made by"),
    "Max broke it": ([f"{DEF[:-1]}\n    return 1"], "stopped", "there is no relative_gain: SyntaxError"),
    "Nia uses helpers": (HELPERS, "passed", ""),
    "Sue trains": ([f"scale = train()\n{DEF} return scale * value"], "stopped", f"{CALLED} stopped with Na"),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """(student, exercise) -> (verdict, hint) of one grading of all of them."""
    folder = tmp_path_factory.mktemp("handed in")
    second = "def average_of(scores): return sum(scores.values()) / 8"
    for student, (cells, *_) in STUDENTS.items():
        notebook(folder / student / "my audit.ipynb", NAME, *cells, second)
    notebook(folder / "Cy untouched" / "10_audit.ipynb", "def relative_gain(value, arrow):\n    ...")
    notebook(folder / "Pat wrote text" / "10_audit.ipynb").write_text("my answers", encoding="utf-8")
    notebook(folder / "Bea has a mark" / "10_audit.ipynb", RIGHT)
    marked = folder / "Bea has a mark" / "10_audit.ipynb"
    marked.write_bytes(b"\xef\xbb\xbf" + marked.read_bytes())
    notebook(folder / "Kay five" / "10_audit.ipynb").write_text('{"cells": [{"cell_type": "code", "source": 5}]}')
    rows = grade.grade(folder, AUDIT, ["10_audit"], grade.Limits(seconds=4, memory_gb=1))
    return {(row.student, row.exercise): (row.verdict, row.hint) for row in rows}


def test_each_submission_gets_its_verdict(rows):
    for student, (_, verdict, hint) in STUDENTS.items():
        found = rows[student, "10.1"]
        assert found[0] == verdict and found[1].startswith(hint) and bool(found[1]) == bool(hint), (student, found)
    assert rows["Cy untouched", "10.1"] == ("not tried", "")
    assert rows["Cy untouched", "10.2"] == ("missing", "no function of that name")
    assert rows["Bea has a mark", "10.1"] == ("passed", "")
    for student in ("Kay five", "Pat wrote text"):
        assert rows[student, "10.1"] == ("unreadable", "10_audit.ipynb is no notebook"), student
    # What hangs or crashes leaves the other exercises and students alone.
    others = {student: rows[student, "10.2"] for student in ("Di loops", "Gil vanishes", "Flo leaves", "Ann")}
    assert len({found for found in others.values()}) == 1 and others["Ann"][0] == "wrong"
    assert len({student for student, _ in rows}) == len(STUDENTS) + 4


def test_each_planted_slip_gets_its_hint_a_right_answer_passes_and_no_word_does():
    for id in ("0.1", "0.2", "10.1", "10.3"):
        exercise = solved(id)
        cases = exercise.cases + exercise.withheld
        assert grade.judge(id, answers.collect(exercise.solution, cases, "f"), "f") == ("passed", "")
        for number, (slip, hint) in enumerate(exercise.slips):
            found = grade.judge(id, answers.collect(slip, cases, "f"), "f")
            assert found == ("wrong", hint), f"slip {number} of {id}"
    for trouble in ("passed", "not yet: x"):
        assert grade.judge("10.1", Answered([], trouble), "f") == ("stopped", trouble)
        assert grade.judge("10.1", Answered(list(KNOWN.values()), trouble), "f")[0] == "stopped"


def answer(folder: Path, source: str, **limits):
    """What `relative_gain` of a one-cell notebook answers to the first case of 10.1."""
    file = notebook(folder / "answers.ipynb", source)
    found = grade.ask(file, {"10.1": "relative_gain"}, grade.Limits(**({"seconds": 20} | limits)))["10.1"]
    return found.answers[0] if found.answers else found.trouble


SEES = """
import os, sys
import prehab_lib
def relative_gain(v, b):
    library = os.path.dirname(prehab_lib.__file__)
    found = [os.path.exists(f"{library}/{name}") for name in ("exercises/ex00.yaml", "exercises/ex10.yaml", "budget.py")]
    return [sys.path, os.getcwd(), found, sorted(os.environ), [n for _, _, f in os.walk(".") for n in f if n[:2] == "ex"]]
"""


HELD = """
import gc
def relative_gain(v, b):
    told = [o for o in gc.get_objects() if isinstance(o, dict)]
    return [sorted(o) for o in told if any(isinstance(o.get(key), list) for key in ("cases", "wanted", "slips"))]
"""


def test_no_solutions_no_repository_and_none_of_the_graders_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_TEACHER", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path, here, found, variables, files = answer(tmp_path, SEES)
    assert str(ROOT) not in path and not any(Path(place, "prehab_lib/exercises/ex00.yaml").exists() for place in path)
    assert ROOT not in Path(here).parents and not Path(here).exists()
    assert found == [False, False, True] and files == []
    assert "SECRET_OF_THE_TEACHER" not in variables and "PYTHONPATH" not in variables
    assert answer(tmp_path, HELD) == [["cases", "id", "name"]]  # it is told cases and no answers


def test_odd_answers_are_no_answers_and_whole_notebooks_run(tmp_path):
    for returned, wanted in {
        "'x' * 2**21": "too long",
        "(lambda a: (a.append(a), a)[1])([])": "RecursionError",
        "10**6000": "ValueError",
    }.items():
        assert wanted in answer(tmp_path, f"def relative_gain(v, b): return {returned}"), returned
    assert answer(tmp_path, "def relative_gain(v, b): return {1}") == "set {1}"
    # A whole notebook runs where that is asked for, and a failing statement stops only itself.
    source = "STATE = [1]\ninput('?')\nraise SystemExit\nSTATE.append(5)\ndef relative_gain(v, b): return STATE[-1]"
    assert answer(tmp_path, source) == 1 and answer(tmp_path, source, whole=True) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="there are no groups of processes")
def test_nothing_stays_behind_a_submission_nor_a_grader_that_is_killed(tmp_path):
    mark = tmp_path / "alive"
    loop = f"import time\nwhile True: open({str(mark)!r}, 'w').write(str(time.time())); time.sleep(0.02)"

    def still_writes() -> bool:
        time.sleep(0.2)
        before = mark.read_text()
        time.sleep(0.2)
        return mark.read_text() != before

    child = f"import os, subprocess, sys, time\n{DEF}\n    subprocess.Popen([sys.executable, '-c', {loop!r}])"
    waits = f"while not os.path.exists({str(mark)!r}): time.sleep(0.01)"
    assert answer(tmp_path, f"{child}\n    {waits}\n    return 1") == 1
    assert not still_writes()
    mark.unlink()
    notebook(tmp_path / "in" / "ann" / "10_audit.ipynb", f"def relative_gain(v, b):\n    exec({loop!r})")
    words = [sys.executable, "course/grade.py", str(tmp_path / "in"), "--out", str(tmp_path / "r.csv")]
    grader = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)})
    while not mark.exists():
        assert grader.poll() is None
        time.sleep(0.05)
    grader.kill()
    grader.wait()
    assert not still_writes()


STRAYS = f"""
import os, subprocess, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: open(MARK + str(os.getpid()), "w")
    time.sleep(600)
subprocess.Popen(["sleep", "600"], start_new_session=True)
{DEF}
    while not os.listdir(MARK): time.sleep(0.01)
    ENDS
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_a_child_that_left_its_session_ends_with_its_submission(tmp_path):
    """However that ends; and what the child holds open keeps nobody waiting."""
    for number, (ends, seconds) in enumerate({"return 1": 60, "os._exit(3)": 60, "time.sleep(600)": 4}.items()):
        marks, started = tmp_path / str(number), time.monotonic()
        marks.mkdir()
        source = STRAYS.replace("MARK", repr(f"{marks}/")).replace("ENDS", ends)
        assert answer(tmp_path, source, whole=True, seconds=seconds) in (1, "it ended by itself", "time limit")
        assert time.monotonic() - started < 50 and not any(alive(int(mark.name)) for mark in marks.iterdir())


# Name of a folder -> as the report has it.
ODD = {"new\nline": r"new\nline", "<b>\"q'&": "<b>\"q'&", "\udcff": r"\udcff", "=1+1": "'=1+1", "\u202e": r"\u202e"}


def test_every_folder_has_a_row_whatever_its_name(tmp_path, capsys, monkeypatch):
    handed, report, scandir = tmp_path / "in", tmp_path / "r.csv", os.scandir
    for name in (*ODD, "closed", "half", "half/closed", "vanishing"):
        notebook(handed / name / "10_audit.ipynb", RIGHT)
    (handed / "empty" / "deep").mkdir(parents=True)
    (handed / "packed.zip").touch()
    (handed / "linked").symlink_to(handed / "empty")

    def denied(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    def copied(source, target, copy=grade.shutil.copy):
        if "vanishing" in str(source):
            raise FileNotFoundError(2, "No such file or directory", str(source))
        return copy(source, target)

    monkeypatch.setattr(os, "scandir", denied)
    monkeypatch.setattr(grade.shutil, "copy", copied)
    assert grade.main([str(handed), "--out", str(report), "--notebooks", "10", "-j", "4"]) == 0
    with report.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    found = {(line["student"], line["verdict"]) for line in lines if line["exercise"] in ("", "10.1")}
    wanted = {(name, "passed") for name in (*ODD.values(), "half")} | {("empty", "missing")}
    assert found == wanted | {(name, "unreadable") for name in ("packed.zip", "linked", "closed", "half", "vanishing")}
    assert "Permission denied" in next(line["hint"] for line in lines if line["student"] == "closed")
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_grader_that_is_stopped_leaves_what_was_graded(tmp_path, stop, code):
    """Ctrl-C ends it and all submissions at once, a kill leaves the report as far as it had grown."""
    notebook(tmp_path / "in" / "ann" / "10_audit.ipynb", RIGHT)
    mark, report = tmp_path / "reached", tmp_path / "r.csv"
    slow = f"import os, time\n{DEF}\n    open({str(mark)!r}, 'w').write(str(os.getpid()))\n    time.sleep(600)"
    for name in ("bo", "cy", "di"):
        notebook(tmp_path / "in" / name / "10_audit.ipynb", slow)
    words = ["course/grade.py", str(tmp_path / "in"), "--notebooks", "10", "--seconds", "500", "--out", str(report)]
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    pipes["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    grader = subprocess.Popen([sys.executable, *words], **pipes)
    wait_for(lambda: mark.is_file() and mark.read_text() and report.is_file())
    sleeper, started = int(mark.read_text()), time.monotonic()
    grader.send_signal(stop)
    said = grader.communicate(timeout=60)[1]
    assert time.monotonic() - started < 10  # two where nothing else is at work
    assert grader.returncode == code and said.count("\n") == (stop == signal.SIGINT)
    wait_for(lambda: not alive(sleeper))
    assert "ann,10_audit,10.1,passed" in report.read_text() and "\nbo," not in report.read_text()


def test_students_are_told_apart_files_recognised_and_the_last_one_counts(tmp_path):
    notebooks = ["00_start_here", "01_surrogates"]
    old = notebook(tmp_path / "ann" / "00_start_here.ipynb", "x = 1")
    new = notebook(tmp_path / "ann" / "deep" / "00_start_here (1).ipynb", "x = 1")
    notebook(tmp_path / "ann" / "anything.ipynb", 'P = parameters.check("01_surrogates", globals())')
    notebook(tmp_path / "ann" / ".ipynb_checkpoints" / "00_start_here-checkpoint.ipynb", "old = 1")
    notebook(tmp_path / "smith_01_surrogates.ipynb", "x = 1")
    notebook(tmp_path / "bo" / "notes.ipynb", "x = 1")
    (tmp_path / "link.ipynb").symlink_to(old)
    for first, last in ((old, new), (new, old)):
        os.utime(first, (1, 1))
        os.utime(last, (2, 2))
        found = grade.find(tmp_path, notebooks)
        assert found["ann", "00_start_here"] == last
    assert set(found) == {("ann", name) for name in notebooks} | {("smith", "01_surrogates"), ("bo", "")}


def test_the_command_writes_the_report_and_says_what_is_wrong(tmp_path, capsys):
    """Other notebooks are left alone; who handed in only such is missing; nothing in the report is a formula."""
    notebook(tmp_path / "in" / "=ann" / "10_audit.ipynb", RIGHT)
    notebook(tmp_path / "in" / "=ann" / "00_start_here.ipynb", "x = 1")
    notebook(tmp_path / "in" / "bo" / "03_vit.ipynb", "x = 1")
    report = tmp_path / "r.csv"
    words = [str(tmp_path / "in"), "--out", str(report), "-j", "1", "--notebooks"]
    assert grade.main([*words, "10"]) == 0
    said = capsys.readouterr().out
    assert "=ann  10_audit  1 of 4" in said and "students: 2, exercises passed: 1 of 8" in said
    assert "00_start" not in said
    with report.open(encoding="utf-8-sig", newline="") as file:
        lines = {(line["student"], line["exercise"]): line for line in csv.DictReader(file)}
    assert list(lines["'=ann", "10.1"].values())[:4] == ["'=ann", "10_audit", "10.1", "passed"]
    assert (lines["bo", "10.1"]["verdict"], lines["bo", "10.1"]["hint"]) == ("missing", "not handed in")
    (tmp_path / "empty").mkdir()
    foreign = [*(tmp_path / name for name in ("grades.csv", "empty", "loop")), "", tmp_path / "in/bo/03_vit.ipynb"]
    foreign[0].write_text("student,grade\nann,1\n")
    foreign[2].symlink_to(foreign[2])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for wrong, sentence in {
        (str(tmp_path / "none"),): "is no folder of submissions",
        ("",): "is no folder of submissions",
        (str(tmp_path / "in" / "=ann" / "10_audit.ipynb"),): "is no folder of submissions",
        (str(tmp_path / "empty"), "--out", str(tmp_path / "new.csv")): "holds no .ipynb file: unpack",
        (*words, "77"): "'77' is no notebook with exercises: choose among 00_start_here",
        (str(tmp_path / "in"), "--out", str(tmp_path / "no" / "r.csv")): "there is no such folder",
        **{(str(tmp_path / "in"), "-j", number): "need numbers above 0" for number in ("0", "10000001")},
        **{(str(tmp_path / "in"), "--memory", number): "" for number in ("nan", "inf", "1e12", "0.001")},
        **{(str(tmp_path / "in"), "--seconds", number): "need numbers above 0" for number in ("nan", "inf", "-1")},
        **{(str(tmp_path / "in"), "--out", str(out)): "is no earlier report" for out in foreign},
        (str(tmp_path / "in"), "--out", str(tmp_path / ("x" * 300))): "name too long",
    }.items():
        assert grade.main(list(wrong)) == 2
        message = capsys.readouterr().err
        assert sentence in message and message.count("\n") == 1, wrong
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert grade.main([*words, "10"]) == 0  # an earlier report is replaced
