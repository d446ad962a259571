"""course.yaml and the guide: what is malformed is refused in one sentence, and what is built is all or nothing."""

import json
from pathlib import Path

import pytest
import yaml

from prehab_lib import course, course_build, course_pages
from prehab_lib.__main__ import main
from tests.course.test_course import COURSE, ROOT, repository


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = repository(tmp_path / "home")
    monkeypatch.chdir(home)
    return home


def edit(home: Path, change) -> None:
    file = home / "course" / "course.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(content["lectures"])
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def test_there_are_eight_lectures_of_ninety_minutes_with_all_exercises():
    assert [lecture.number for lecture in COURSE.lectures] == list(range(1, 9))
    for lecture in COURSE.lectures:
        assert sum(step.minutes for step in lecture.plan) == 90
        given = sum(step.minutes for step in lecture.plan if step.what.startswith("Exercises"))
        assert sum(lecture.exercises.values()) <= given, (
            f"lecture {lecture.number} has too little time for its exercises"
        )
        assert len(lecture.goals) >= 3 and len(lecture.questions) >= 3 and lecture.prerequisites


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda all: all[0]["plan"][0].update(minutes=5), "lectures.0: lecture 1: its plan has 85 minutes, not 90"),
        (lambda all: all[1].update(notebooks={"99_x": "all"}), "lecture 2 names 99_x, which notebooks/ does not hold"),
        (lambda all: all[1].update(notebooks={"00_start_here": "all"}), "00_start_here is in two lectures"),
        (lambda all: all[0]["exercises"].pop("0.2"), "lecture 1 and its notebooks differ in exercise 0.2"),
        (lambda all: all[0]["exercises"].update({"5.1": 3}), "lecture 1 and its notebooks differ in exercise 5.1"),
        (lambda all: all[0].update(goal="x"), "lectures.0.goal: Extra inputs are not permitted"),
        (lambda all: all[0].pop("title"), "lectures.0.title: Field required"),
        (
            lambda all: all[0]["exercises"].update({"0.1": "five"}),
            "lectures.0.exercises.0.1: Input should be a valid integer",
        ),
    ],
)
def test_a_mistake_in_the_course_is_one_sentence_and_nothing_is_written(home, capsys, change, sentence):
    edit(home, change)
    assert main(["course"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and "Traceback" not in said
    assert not (home / "course" / "_build").exists()


@pytest.mark.parametrize("text", ["- 1", "lectures: [", ""])
def test_a_file_that_is_no_course_is_refused(home, capsys, text):
    (home / "course" / "course.yaml").write_text(text)
    assert main(["course"]) == 2 and "course.yaml is no list of lectures" in capsys.readouterr().err
    (home / "course" / "course.yaml").unlink()
    assert main(["course"]) == 2 and "course.yaml is missing" in capsys.readouterr().err


def test_a_build_that_fails_leaves_the_old_one(home, monkeypatch, capsys):
    assert main(["course"]) == 0
    before = sorted((home / "course").rglob("*"))
    monkeypatch.setattr(course_build, "teachers", lambda *all: (_ for _ in ()).throw(ValueError("no")))
    assert main(["course"]) == 2
    assert sorted((home / "course").rglob("*")) == before


def test_the_guide_agrees_with_the_data(home):
    text = (ROOT / "course" / "README.md").read_text(encoding="utf-8")
    assert course_pages.guide(text, COURSE) == text, "run make course and commit course/README.md"
    edit(home, lambda all: all[0].update(title="Something else"))
    assert "### Lecture 1: Something else" in course_pages.guide(text, course.load(home))
    with pytest.raises(ValueError, match="needs the lines"):
        course_pages.guide(text.replace(course_pages.END, ""), COURSE)


def test_the_guide_has_three_projects_and_names_files_that_exist():
    text = (ROOT / "course" / "README.md").read_text(encoding="utf-8")
    projects = text.split("## Three projects")[1]
    assert [line[:2] for line in projects.splitlines() if line[:1].isdigit()] == ["1.", "2.", "3."]
    assert projects.count("*Control*") == 3 and projects.count("*Question*") == 3
    assert "no security sandbox" in text
    for file in ("prehab_lib/rivals/tail.py", "prehab_lib/surrogates.py"):
        assert file in projects and (ROOT / file).is_file()


def spoiled(home: Path, name: str, old: str, new: str) -> Path:
    """The checkout with one notebook changed."""
    linked = home / "notebooks"
    linked.unlink()
    linked.mkdir()
    (linked / "solutions").symlink_to(ROOT / "notebooks" / "solutions")
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        text = file.read_text(encoding="utf-8")
        if file.stem == name:
            changed = json.dumps(json.loads(text), ensure_ascii=False).replace(old, new)
            assert changed != json.dumps(json.loads(text), ensure_ascii=False)
            text = changed
        (linked / file.name).write_text(text, encoding="utf-8")
    return home


@pytest.mark.parametrize(
    "name, old, new, sentence",
    [
        (
            "06_ablations",
            "(nothing, control, prepared): ...",
            "(nothing, control, prepared): return 1",
            "6.1 is not blank",
        ),
        (
            "00_start_here",
            "Replace the `...`",
            "See solutions. Replace the `...`",
            "a text cell tells students of solutions",
        ),
    ],
)
def test_a_notebook_that_tells_too_much_is_not_handed_out(home, capsys, name, old, new, sentence):
    assert main(["course"]) == 0
    spoiled(home, name, old, new)
    assert main(["course"]) == 2
    assert name in (said := capsys.readouterr().err) and sentence in said
