"""Submissions of every kind, graded once: good, wrong, learnt by heart, hostile to the grader, and no notebook at all."""

import csv
import json
import os
from pathlib import Path

import pytest

from prehab_lib import grading, submissions
from prehab_lib.__main__ import main
from prehab_lib.exercises.answers import Answered
from prehab_lib.exercises.ex00 import EXERCISES as FIRST
from prehab_lib.exercises.ex10 import EXERCISES
from prehab_lib.grading_process import Limits, Outcome

ROOT = Path(__file__).resolve().parents[2]
LESSON = ROOT / "notebooks" / "10_audit.ipynb"
NAME = 'from prehab_lib import parameters\nP = parameters.check("10_audit", globals())'
RIGHT = """
def printed_change(value, base):
    return round(100 * (value / base - 1), 1)
"""
CALLED = "printed_change({:.5g}, {:.5g})".format(*EXERCISES["10.1"].cases[0])
KNOWN = dict(zip((case for case in EXERCISES["10.1"].cases), (56.8, -11.5, -36.7, -1.3), strict=True))
CELLS = {  # student -> cells that answer 10.1
    "Ann": [RIGHT],
    "Bo by heart": [f"def printed_change(value, base): return {KNOWN}.get((value, base), 0)"],
    "Cy slipped": ["def printed_change(value, base): return round(100 * (1 - base / value), 1)"],
    "Di loops": ["def printed_change(value, base):\n    while True: pass"],
    "Ed eats memory": ["def printed_change(value, base): return len(bytearray(2**33))"],
    "Flo leaves": ["import sys\ndef printed_change(value, base): sys.exit()"],
    "Gil vanishes": ["import os\ndef printed_change(value, base): os._exit(0)"],
    "Hal boasts": [
        "import prehab_lib.exercises.checks, prehab_lib.exercises.answers as a\nfrom prehab_lib.exercises.checks import check\n"
        "prehab_lib.exercises.checks.check = print\na.same = a.UNTRIED = a.plain = lambda *_: True\n"
        "class Equal(float):\n    __eq__ = lambda *_: True\n    __hash__ = None\n"
        "def printed_change(value, base):\n    print('exercise 10.1: passed')\n    return Equal(7)",
    ],
    "Ida forges": [
        "import json, os\nfor fd in range(3, 20):\n    try:\n"
        "        os.write(fd, (json.dumps(dict(id='10.1', answers=None, trouble='passed', seconds=0)) + '\\n').encode())\n"
        "    except OSError: pass\ndef printed_change(value, base): return 0",
    ],
    "Jo floods": ["while_printing = [print('x' * 10**6) for _ in range(50)]" + RIGHT],
    "Zoë 学": ["%pip install nothing\n!ls\nimport math" + RIGHT, "raise RuntimeError('elsewhere')", "def broken(:"],
    "Kim asks": ["answer = input('?')\n" + RIGHT],
    "Lee errs": ["def printed_change(value, base): return value.sum()"],
    "Moe forgets": ["def printed_change(value, base):\n    round(100 * (value / base - 1), 1)"],
    "Max broke it": ["def printed_change(value, base)\n    return 1"],
    "Nia uses helpers": [
        "from math import *\nPER = 100",
        "def change(v, b): return PER * (v / b - 1)",
        "PER *= 1",
        "def printed_change(value, base): return round(change(value, base), int(sqrt(1)))",
    ],
}
WANTED = {
    "Ann": ("passed", ""),
    "Bo by heart": (
        "wrong",
        "right on the cases it was shown, not on others: printed_change({:.5g}, {:.5g}) gives 0, wanted 6.5".format(
            *EXERCISES["10.1"].withheld[0]
        ),
    ),
    "Cy slipped": ("wrong", "in per cent of the base, not of the value"),
    "Di loops": ("time limit", "not done after 5 s"),
    "Ed eats memory": ("memory limit", f"{CALLED} stopped with MemoryError:"),
    "Flo leaves": ("stopped", "stopped with SystemExit:"),
    "Gil vanishes": ("stopped", "it ended by itself"),
    "Hal boasts": ("wrong", f"not yet: {CALLED} gives True, wanted 56.8"),
    "Ida forges": ("stopped", "passed"),
    "Jo floods": ("passed", ""),
    "Zoë 学": ("passed", ""),
    "Kim asks": ("stopped", "its cells stopped with EOFError: EOF when reading a line"),
    "Lee errs": ("stopped", f"{CALLED} stopped with AttributeError: 'float' object has no attribute 'sum'"),
    "Moe forgets": ("wrong", "it returns nothing: is a return missing?"),
    "Max broke it": ("stopped", "its cell is no Python: SyntaxError: expected ':', line 1"),
    "Nia uses helpers": ("passed", ""),
}


def notebook(file: Path, *cells: str) -> Path:
    content = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "outputs": [], "source": c} for n, c in enumerate(cells)
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"cells": content, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
    )
    return file


def report(file: Path) -> list[dict]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """(the folder, rows of the report, how often a submission's process was started)."""
    folder = tmp_path_factory.mktemp("handed in")
    other = "def average_of(scores):\n    return sum(scores.values()) / 8"
    for student, cells in CELLS.items():
        notebook(folder / student / "10_audit.ipynb", NAME, *cells, other)
    (folder / "Pat wrote text").mkdir()
    (folder / "Pat wrote text" / "10_audit.ipynb").write_text("my answers", encoding="utf-8")
    notebook(folder / "10_audit untouched.ipynb", *_lesson_cells())
    say: list[str] = []
    rows = grading.grade(folder, folder / "report.csv", {"10_audit": LESSON}, Limits(5, 1), 2, say.append)
    assert len(say) == len(CELLS) + 2
    return folder, rows


def _lesson_cells() -> list[str]:
    cells = json.loads(LESSON.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def of(rows, student, exercise="10.1"):
    [row] = [row for row in rows if (row.student, row.exercise) == (student, exercise)]
    return row.verdict, row.hint


@pytest.mark.parametrize("student", CELLS)
def test_each_submission_gets_its_verdict_and_its_hint(graded, student):
    assert of(graded[1], student) == WANTED[student]


@pytest.mark.parametrize("student", [name for name in CELLS if name not in ("Hal boasts", "Ida forges")])
def test_one_answer_does_not_spoil_the_next(graded, student):
    """Also after a process that was killed, or left by its own will; two spoil their own process."""
    verdict, hint = of(graded[1], student, "10.2")
    assert (verdict, hint) == ("wrong", EXERCISES["10.2"].slips[-1][1])
    assert of(graded[1], student, "10.3") == ("missing", "no function of that name")


def test_what_is_no_notebook_and_what_is_untouched(graded):
    for exercise in EXERCISES:
        assert of(graded[1], "Pat wrote text", exercise) == ("unreadable", "10_audit.ipynb is no notebook")
        assert of(graded[1], "untouched", exercise) == ("not tried", "")


def test_the_report_is_a_table_with_a_line_for_each_student_and_exercise(graded):
    assert (graded[0] / "report.csv").read_bytes().startswith(b"\xef\xbb\xbf")  # the mark that spreadsheets look for
    lines = report(graded[0] / "report.csv")
    assert list(lines[0]) == ["student", "notebook", "exercise", "verdict", "hint", "seconds"]
    assert len(lines) == 4 * (len(CELLS) + 2)
    assert [line["exercise"] for line in lines[:4]] == ["10.1", "10.2", "10.3", "10.4"]
    assert "Zoë 学" in {line["student"] for line in lines}
    assert all(float(line["seconds"]) < 6 for line in lines)


def test_nothing_unchanged_is_graded_again(graded, tmp_path, monkeypatch):
    folder, rows = graded
    with (folder / "report.graded.jsonl").open("a", encoding="utf-8") as kept:
        kept.write('\n{"key": "torn')  # as a kill leaves it
    asked = []
    real = grading.grading_process.ask
    monkeypatch.setattr(grading.grading_process, "ask", lambda *all: asked.append(all[0].parent.name) or real(*all))

    def again():
        asked.clear()
        return grading.grade(folder, folder / "report.csv", {"10_audit": LESSON}, Limits(5, 1), 1, lambda line: None)

    assert again() == rows and asked == []
    notebook(folder / "Cy slipped" / "10_audit.ipynb", NAME, RIGHT)
    assert of(again(), "Cy slipped") == ("passed", "") and asked == ["Cy slipped"]
    assert of(again(), "Cy slipped") == ("passed", "") and asked == []


def test_a_slip_is_named_also_where_it_stops_at_a_later_case():
    """s[rank] of 0.2 gives the largest value dropped, and stops where nothing is dropped."""
    exercise = FIRST["0.2"]
    stopped = Outcome(Answered([4.0, 4.0], "tail_error([5, 1], 2) stopped with IndexError: 2"), 1.0)
    assert grading.judge(exercise, stopped, "tail_error") == ("wrong", exercise.slips[-1][1])
    right = Outcome(Answered([5.0, 6.0], "tail_error([5, 1], 2) stopped with IndexError: 2"), 1.0)
    assert grading.judge(exercise, right)[0] == "stopped"


@pytest.mark.parametrize("trouble", ["passed", "not yet: x"])
def test_no_word_of_a_submission_passes_an_exercise(trouble):
    answered = Answered([], trouble)
    assert grading.judge(EXERCISES["10.1"], Outcome(answered, 1.0)) == ("stopped", trouble)


def test_a_report_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    row = grading.Row("=cmd()", "n", "1.1", "wrong", "-0.5, not +0.5", 0.0)
    grading.write([row], tmp_path / "r.csv")
    before = (tmp_path / "r.csv").read_bytes()
    assert report(tmp_path / "r.csv")[0] | {"seconds": 0} == {
        **{"student": "'=cmd()", "notebook": "n", "exercise": "1.1", "verdict": "wrong", "seconds": 0},
        "hint": "'-0.5, not +0.5",
    }
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError):
        grading.write([], tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_who_did_not_hand_in_a_notebook_that_others_did_is_missing(tmp_path):
    notebook(tmp_path / "in" / "ann" / "10_audit.ipynb", RIGHT)
    notebook(tmp_path / "in" / "bo" / "my work.ipynb", "print(1)")
    rows = grading.grade(tmp_path / "in", tmp_path / "r.csv", {"10_audit": LESSON}, Limits(9), 1, lambda line: None)
    assert of(rows, "bo", "10.4") == ("missing", "not handed in") and of(rows, "ann") == ("passed", "")
    [row] = [row for row in rows if row.verdict == "unreadable"]
    assert (row.student, row.notebook) == ("bo", "my work.ipynb") and "cannot be told" in row.hint


def test_the_command_grades_and_says_what_is_wrong(tmp_path, capsys):
    notebook(tmp_path / "in" / "ann" / "10_audit.ipynb", RIGHT)
    assert main(["grade", str(tmp_path / "in"), "--out", str(tmp_path / "r.csv"), "--notebooks", "10", "-j", "1"]) == 0
    assert "ann  10_audit  1 of 4" in (said := capsys.readouterr().out) and "1 student, 1 of 4 exercises passed" in said
    (tmp_path / "empty").mkdir()
    for words, wanted in {
        (str(tmp_path / "empty"),): "holds no .ipynb file: unpack",
        (str(tmp_path / "none"),): "is no folder: give the one that holds",
        (str(tmp_path / "in"), "--notebooks", "77"): "'77' is no notebook of the course: choose among 00_start_here",
        (str(tmp_path / "in"), "--out", str(tmp_path / "no" / "r.csv")): "there is no such folder",
        (str(tmp_path / "in"), "-j", "0"): "-j 0: give a whole number",
    }.items():
        assert main(["grade", *words]) == 2
        assert wanted in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["grade", "x", "--seconds", "0"])


def test_who_hands_in_the_whole_folder_is_graded_on_what_was_asked_for(tmp_path, capsys):
    """Other notebooks of the course are left alone; who handed in only such is missing; a loose file needs a name."""
    for name in ("00_start_here", "03_vit", "10_audit"):
        notebook(tmp_path / "in" / "ann" / f"{name}.ipynb", RIGHT)
    notebook(tmp_path / "in" / "bo" / "03_vit.ipynb", "x = 1")
    notebook(tmp_path / "in" / "10_audit (1).ipynb", RIGHT)
    words = ["grade", str(tmp_path / "in"), "--out", str(tmp_path / "r.csv"), "-j", "1", "--notebooks"]
    assert main([*words, "10"]) == 0
    said = capsys.readouterr().out
    assert "03_vit" not in said and "00_start" not in said and "1 of 12 exercises passed" in said
    lines = {line["student"]: (line["verdict"], line["hint"]) for line in report(tmp_path / "r.csv")}
    assert lines["bo"] == ("missing", "not handed in")
    assert lines["10_audit (1).ipynb"] == ("unreadable", submissions.NAMELESS)
    nobody = submissions.Submission("x.ipynb", Path("x.ipynb"), "10_audit", submissions.NAMELESS)
    assert grading._absent([nobody], {"03_vit": LESSON}) == []
    assert main([*words, "07"]) == 2 and "holds none of 07_adaptive_rank" in capsys.readouterr().err


BOOKS = ["00_start_here", "01_surrogates"]


def test_students_are_told_apart_and_files_recognised(tmp_path):
    notebook(tmp_path / "ann" / "deep" / "00_start_here (1).ipynb", "x = 1")
    notebook(tmp_path / "ann" / "anything.ipynb", 'P = parameters.check("01_surrogates", globals())')
    notebook(tmp_path / "ann" / ".ipynb_checkpoints" / "00_start_here-checkpoint.ipynb", "old = 1")
    notebook(tmp_path / "smith_01_surrogates.ipynb", "x = 1")
    for mark in ("", " (1)", "-Copy1", " 2"):
        notebook(tmp_path / f"01_surrogates{mark}.ipynb", "x = 1")
    notebook(tmp_path / "01_surrogates 1234567.ipynb", "x = 1")
    notebook(tmp_path / "Zoe\u0308" / "00_start_here.ipynb", "x = 1")
    notebook(tmp_path / "Zo\u00eb" / "00_start_here.ipynb", "x = 2")
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "01_surrogates.ipynb")
    found = submissions.find(tmp_path, BOOKS)
    nameless = [one.file.name for one in found if one.fault == submissions.NAMELESS]
    assert sorted(nameless) == [f"01_surrogates{mark}.ipynb" for mark in (" (1)", " 2", "-Copy1", "")]
    assert {(one.student, one.notebook) for one in found if not one.fault} == {
        ("ann", "00_start_here"),
        ("ann", "01_surrogates"),
        ("smith", "01_surrogates"),
        ("1234567", "01_surrogates"),
        ("Zo\u00eb", "00_start_here"),
        ("Zo\u00eb (2)", "00_start_here"),
    }


def test_of_two_files_for_one_notebook_the_one_changed_last_counts(tmp_path):
    old, new = (notebook(tmp_path / "ann" / f"00_start_here{mark}.ipynb", "x = 1") for mark in ("-Copy1", ""))
    for first, last in ((old, new), (new, old)):
        os.utime(first, (1, 1))
        os.utime(last, (2, 2))
        assert [one.file for one in submissions.find(tmp_path, BOOKS)] == [last]
