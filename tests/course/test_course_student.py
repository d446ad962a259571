"""The student's copy names nothing that does not work there, and the teacher's work in course/_build is not deleted."""

import json
import re
import subprocess

import pytest

from prehab_lib import course_pages, course_student, course_written
from prehab_lib.__main__ import main
from tests.course.test_course import COURSE, LESSONS, ROOT, built, cells, notebooks, repository

__all__ = ["built"]  # a fixture


def test_the_students_folder_names_no_target_and_no_command_that_is_not_there(built):
    student = built / "student"
    rules = (student / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", rules, re.MULTILINE))
    assert targets == set(course_student.TARGETS) and "prehab_lib run" not in rules and "rm -rf" not in rules
    texts = [(student / name).read_text(encoding="utf-8") for name in ("README.md", "environment.yml", "Makefile")]
    texts += ["\n".join(cells(file, "markdown")) for file in notebooks(built, "student").values()]
    assert len(texts) == 3 + len(LESSONS)
    for text in texts:
        named = re.findall(r"(?:`|\"|#   )make ([a-z][\w-]*)", text)
        assert set(named) <= targets
        assert not re.search(r"python -m prehab_lib (?!compress)\w|\b[Tt]he README\b", text)
    assert "make jupyter" in texts[0] and "make jupyter PY=python" in texts[1]


def test_make_in_the_students_folder_helps_and_knows_its_targets(built):
    def make(*words):
        return subprocess.run(["make", *words], cwd=built / "student", capture_output=True, text=True)

    said = make("help").stdout
    assert re.findall(r"^make (\w+)", said, re.MULTILINE) == ["jupyter", "setup"] and "JOBS" not in said
    assert make("-n", "jupyter").returncode == 0 and make("-n", "reproduce").returncode == 2


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Change a value, or let `python -m prehab_lib run` do it. Then look.", "Change a value. Then look."),
        ("`make jupyter` opens it. With a GPU: `make lab`. Done.", "`make jupyter` opens it. Done."),
        ("Minutes are in the README. Every file says more.", "Every file says more."),
        ("| a | b |\n|---|---|\n| x | `make lab` |\n| y | z |", "| a | b |\n|---|---|\n| y | z |"),
        ("Before.\n\n| a | b |\n|---|---|\n| x | `make lab` |", "Before."),
        ("It has more, e.g. `make lab`. Done.", "Done."),
        ("Use `python -m prehab_lib compress MODEL`. It is 2.5 times as fast, e.g. A.", None),
    ],
)
def test_words_on_what_is_not_there_are_left_out(text, wanted):
    assert course_student.words(text) == (text if wanted is None else wanted)


def test_students_learn_what_it_is_for_how_windows_does_and_whether_it_worked():
    text = " ".join(course_pages.for_students(COURSE).split())
    opening = (ROOT / "README.md").read_text(encoding="utf-8").split("This repository")[0].split("\n\n", 1)[1]
    assert " ".join(opening.split()) in text and "You need not have read the paper." in text
    assert "wsl --install" in text and "four lines must say *not tried yet*" in text


def test_the_guide_shows_the_hint_of_the_teachers_own_notebook(built):
    text = (ROOT / "course" / "README.md").read_text(encoding="utf-8")
    [demonstration] = re.findall(r"```python\n\s*(check.*)\n", text)
    [cell] = [
        cell
        for cell in json.loads(notebooks(built, "teacher")["00_start_here"].read_text(encoding="utf-8"))["cells"]
        if "".join(cell["source"]) == demonstration
    ]
    assert "".join(cell["outputs"][0]["text"]).strip() in text
    assert "0.3" in COURSE.lectures[0].homework  # shown just before the class works, so not what it works on


@pytest.fixture
def written(tmp_path):
    """A small course/_build with its record."""
    out = tmp_path / "course" / "_build"
    for name in ("student/README.md", "teacher/lecture1/plan.md"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text(name)
    course_written.record(out)
    return out


def test_what_was_built_and_what_programs_leave_behind_may_go(written):
    (written / "teacher" / ".ipynb_checkpoints").mkdir()
    (written / "teacher" / ".ipynb_checkpoints" / "x.ipynb").write_text("x")
    course_written.refuse_to_lose(written)
    course_written.refuse_to_lose(written.with_name("not there"))


@pytest.mark.parametrize(
    "name, what",
    [
        ("teacher/notes.md", "is not from"),
        ("handed in/ann.ipynb", "is not from"),
        ("teacher/lecture1/plan.md", "has been changed since"),
    ],
)
def test_new_and_changed_files_are_a_reason_to_stop(written, name, what):
    (written / name).parent.mkdir(exist_ok=True)
    (written / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"^course/_build/{name} {what} make course.* delete the folder"):
        course_written.refuse_to_lose(written)


def test_make_course_deletes_nothing_of_the_teachers(tmp_path, monkeypatch, capsys):
    """Also where nothing tells what a build wrote."""
    monkeypatch.chdir(home := repository(tmp_path / "home"))
    notes = home / "course" / "_build" / "notes.md"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert main(["course"]) == 2
    assert (
        "course/_build/notes.md is not from make course" in (said := capsys.readouterr().err) and said.count("\n") == 1
    )
    assert notes.read_text() == "mine" and not (home / "course" / "_build" / "student").exists()
