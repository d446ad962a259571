"""`make course`: the student's folder works and holds no solution, the teacher's holds all, the guide agrees with the data."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from prehab_lib.exercises import solved
from tests.beside import ROOT, load

build = load("course/build.py")
LECTURES = build.load()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
ASKED = {file.stem: build.asked_in(file) for file in NOTEBOOKS}
MINUTES = dict(pair for lecture in LECTURES for pair in lecture.minutes())
GUIDE = (ROOT / "course" / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What a build of this repository writes, over an older one."""
    out = tmp_path_factory.mktemp("course") / "_build"
    notes = out / "teacher" / "notes.md"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    build.build(out)
    assert sorted(path.name for path in out.iterdir()) == ["before", "student", "teacher"]
    assert (out / "before" / "teacher" / "notes.md").read_text() == "mine" and not notes.exists()
    return out


def cells(file: Path, kind: str = "code") -> list[str]:
    content = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in content if cell["cell_type"] == kind]


def test_students_get_no_solution(built):
    student = built / "student"
    modules = {file.stem for file in (ROOT / "prehab_lib" / "exercises").glob("ex[0-9][0-9].yaml")}
    assert {file.stem for file in (student / "prehab_lib" / "exercises").glob("ex*")} == modules
    solution = re.compile(r"/solutions(/|$)|/ex\d\d\.yaml")
    assert not [file for file in student.rglob("*") if solution.search(file.relative_to(built).as_posix())]
    assert not [file for file in student.rglob("*") if file.is_file() and b"      gives: " in file.read_bytes()]
    for name in modules:
        content = json.loads((student / "prehab_lib" / "exercises" / f"{name}.json").read_text(encoding="utf-8"))
        for id, key in content.items():
            assert set(key) == {"cases", "wanted", "slips"}, id
            assert len(key["cases"]) == len(solved(id).cases), f"{id} tells its withheld cases"
            assert all(set(slip) == {"tuple"} and len(slip["tuple"]) == 2 for slip in key["slips"]), id


def test_a_students_notebook_is_blank_and_tells_no_solution(built):
    for name, asked in ASKED.items():
        file = built / "student" / "notebooks" / f"{name}.ipynb"
        nodes = [node for source in cells(file) if build.CALL.search(source) for node in ast.parse(source).body]
        bodies = {node.name: node.body for node in nodes if isinstance(node, ast.FunctionDef)}
        for id, function in asked.items():
            *docstring, last = bodies[function]
            assert ast.unparse(last) == "..." and len(docstring) <= 1, f"{name}: exercise {id} is not blank"
        text = "\n".join(cells(file, "markdown"))
        assert "olutions" not in text, name
        for reason in cells(ROOT / "notebooks" / "solutions" / f"{name}.ipynb", "markdown")[1:]:
            assert reason.strip()[-60:] not in text, f"{name} tells {reason[:40]}"


def test_all_notebooks_are_there_and_whole_and_their_links_hold(built):
    for folder in (built / "student" / "notebooks", built / "teacher"):
        assert sorted(file.name for file in folder.glob("*.ipynb")) == [file.name for file in NOTEBOOKS]
        for original in NOTEBOOKS:
            file = folder / original.name
            nbformat.validate(nbformat.read(file, as_version=4))
            assert set(cells(original)) <= set(cells(file)), file
            for link in re.findall(r"\]\((\d\d[a-z]?_[^)#:]+)\)", "\n".join(cells(file, "markdown"))):
                assert (folder / link).exists(), f"{file}: {link}"


def test_every_table_that_a_notebook_quotes_is_handed_out(built):
    tables = {file.relative_to(ROOT / "figures") for file in (ROOT / "figures").rglob("*.csv")}
    assert len(tables) > 50
    for folder in (built / "student" / "figures", built / "teacher" / "figures"):
        assert {file.relative_to(folder) for file in folder.rglob("*.csv")} == tables
    for file in NOTEBOOKS:
        for name in re.findall(r'committed\(\\"(\w+)\\"', file.read_text(encoding="utf-8")):
            assert any(table.stem == name for table in tables), (file.name, name)


ALL_CHECKS = r"""
import json, re, sys
import prehab_lib
from prehab_lib.exercises import checks

assert prehab_lib.__file__.startswith(sys.argv[1])
for file in sys.argv[2:]:
    for cell in json.load(open(file, encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.search(r"^check\(", source, re.M):
            exec(source, {"check": checks.check, "__name__": "x"})
checks.check("0.2", lambda s, rank: (s - (s - (*s, 0)[rank]).clamp(min=0)).square().sum())
checks.check("0.2", lambda s, rank: s[rank:].square().sum())
checks.check("10.3", lambda removed, scores, ours, theirs: 1)
"""


def test_students_checks_work_without_a_solution(built):
    """Stubs are untried, right answers pass, slips get their hints."""
    student = built / "student"
    files = [str(student / "notebooks" / f"{name}.ipynb") for name in ASKED]
    own = os.environ | {"PYTHONPATH": str(student)}
    command = [sys.executable, "-c", ALL_CHECKS, str(student), *files]
    done = subprocess.run(command, capture_output=True, text=True, env=own, cwd=student)
    assert done.returncode == 0, done.stderr[-2000:]
    *stubs, right, slip, other = done.stdout.splitlines()
    assert stubs == [f"exercise {id}: not tried yet" for asked in ASKED.values() for id in asked]
    assert len(stubs) == len(MINUTES)
    assert right == "exercise 0.2: passed" and slip == f"exercise 0.2: {solved('0.2').slips[0][1]}"
    assert re.fullmatch(r"exercise 10.3: not yet: f\(.*\) gives 1, wanted 6\.57\d*", other)


def test_make_works_in_the_students_folder_and_its_readme_names_what_is_there(built):
    student = built / "student"
    text = (student / "README.md").read_text(encoding="utf-8")
    for target in {"help", *re.findall(r"make ([a-z]+)\b", text.replace("make python3-venv", ""))} - {"it"}:
        done = subprocess.run(["make", "-n", target], cwd=student, capture_output=True, text=True)
        assert done.returncode == 0, (target, done.stderr)
    for link in re.findall(r"\]\((notebooks/[^)]+)\)", text):
        assert (student / link).is_file(), link
    assert text.count(".ipynb)") == len(ASKED)
    assert (student / "params").is_dir() and (student / "requirements.lock").is_file()


def test_teachers_get_every_solution_folded_in_behind_its_exercise(built):
    for name, asked in ASKED.items():
        found = nbformat.read(built / "teacher" / f"{name}.ipynb", as_version=4).cells
        for id, function in asked.items():
            stub = next(n for n, cell in enumerate(found) if f'check("{id}", {function})' in cell.source)
            assert build.STUB.search(found[stub].source), id
            note = found[stub + 1].source
            assert note.startswith("<details>") and note.endswith("</details>") and f"Solution of {id}" in note
            assert MINUTES[id] in note and all(hint in note for _, hint in solved(id).slips), id
            answer = next(cell for cell in found[stub + 2 :] if f'check("{id}", {function})' in cell.source)
            assert answer.metadata.jupyter.source_hidden and f"exercise {id}: passed" in str(answer.outputs), id
    for lecture in LECTURES:
        page = (built / "teacher" / f"lecture{lecture.number}.md").read_text(encoding="utf-8")
        assert f"# Lecture {lecture.number}: {lecture.title}" in page


def test_there_are_eight_lectures_of_ninety_minutes_with_all_exercises():
    assert [lecture.number for lecture in LECTURES] == list(range(1, 9))
    assert set(MINUTES) == {id for asked in ASKED.values() for id in asked}
    for lecture in LECTURES:
        given = sum(step.minutes for step in lecture.plan if step.what.startswith("Exercises"))
        assert sum(lecture.exercises.values()) <= given, f"lecture {lecture.number} has too little time for exercises"
        assert len(lecture.goals) >= 3 and len(lecture.questions) >= 3 and lecture.prerequisites


@pytest.fixture
def home(tmp_path):
    """A checkout whose course and notebooks may be changed."""
    for name in ("prehab_lib", "figures", *build.HANDED_OUT):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "course", tmp_path / "course", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    (tmp_path / "notebooks").mkdir()
    for file in [*NOTEBOOKS, ROOT / "notebooks" / "solutions"]:
        (tmp_path / "notebooks" / file.name).symlink_to(file)
    return tmp_path


MISTAKES = [
    (lambda all: all[0]["plan"][0].update(minutes=5), "lectures.0: lecture 1: its plan has 85 minutes, not 90"),
    (lambda all: all[1].update(notebooks={"99_x": "all"}), "lecture 2 names 99_x, which notebooks/ does not hold"),
    (lambda all: all[1].update(notebooks={"00_start_here": "all"}), "00_start_here is in two lectures"),
    (lambda all: all[0]["exercises"].pop("0.2"), "its lectures and their notebooks differ in exercise 0.2"),
    (lambda all: all[0]["exercises"].update({"5.1": 3}), "exercise 5.1 is given twice: keep one of its places"),
    (lambda all: all[1].update(number=1), "course.yaml: two lectures have the number 1: give each its own"),
    (lambda all: all[0]["plan"][0].update(minutes=-110), "lectures.0.plan.0.minutes: Input should be greater than 0"),
    (lambda all: all[0].update(goal="x"), "lectures.0.goal: Extra inputs are not permitted"),
]


def test_a_mistake_in_the_course_is_one_sentence_and_nothing_is_written(home, capsys):
    file = home / "course" / "course.yaml"
    original = yaml.safe_load(file.read_text(encoding="utf-8"))
    for change, sentence in MISTAKES:
        content = json.loads(json.dumps(original))
        change(content["lectures"])
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        assert build.main(home) == 2, sentence
        message = capsys.readouterr().err
        assert sentence in message and message.count("\n") == 1, message
    for text, sentence in {"- 1": "course.yaml: write one", "lectures: [": "course.yaml: while parsing"}.items():
        file.write_text(text)
        assert build.main(home) == 2 and sentence in capsys.readouterr().err
    assert not (home / "course" / "_build").exists()


def test_a_notebook_that_tells_too_much_is_not_handed_out_and_the_old_build_stays(home, capsys):
    assert build.main(home) == 0
    before = sorted((home / "course" / "_build" / "student").rglob("*"))
    (home / "notebooks" / "solutions").unlink()
    shutil.copytree(ROOT / "notebooks" / "solutions", home / "notebooks" / "solutions")
    blank = "(first, second, effect): "
    for name, old, new, sentence in (
        ("06_ablations", f"{blank}...", f"{blank}return 1", "6.2 is not blank"),
        ("solutions/00_start_here", "**0.1** ", "0.1 ", "has no text cell that begins with **0.1**"),
        ("00_start_here", '"cells": [', '"cells": {', "is not a notebook"),
        ("../course/README", "<!-- lectures", "<!-- x", "course/README.md needs the lines"),
        ("00_start_here", "Replace the `...`", "See solutions. Replace the `...`", "tells students of solutions"),
    ):
        file = home / "notebooks" / f"{name}.{'md' if 'README' in name else 'ipynb'}"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.unlink()
        file.write_text(text.replace(old, new), encoding="utf-8")
        assert build.main(home) == 2
        message = capsys.readouterr().err
        assert Path(name).name in message and sentence in message
        file.write_text(text, encoding="utf-8")
    assert sorted((home / "course" / "_build" / "student").rglob("*")) == before


def test_the_guide_agrees_with_the_data_with_the_teachers_notebook_and_with_what_exists(built):
    assert build.guide(GUIDE, LECTURES) == GUIDE, "run make course and commit course/README.md"
    with pytest.raises(ValueError, match="needs the lines"):
        build.guide(GUIDE.replace(build.END, ""), LECTURES)
    [demonstration] = re.findall(r"```python\n\s*(check.*)\n", GUIDE)
    teacher = nbformat.read(built / "teacher" / "00_start_here.ipynb", as_version=4)
    [cell] = [cell for cell in teacher.cells if cell.source == demonstration]
    assert cell.outputs[0].text.strip() in GUIDE
    for file in set(re.findall(r"(?:prehab_lib|course)/[a-z_/]+\.(?:py|yaml|md)", GUIDE)):
        assert (ROOT / file).is_file(), file
    grading = GUIDE.split("## Grading")[1].split("## Three projects")[0]
    for program, words in [
        (["-m", "prehab_lib"], re.findall(r"-m prehab_lib (\w+)", GUIDE)),
        (["course/grade.py"], re.findall(r"--[a-z]+", grading)),
    ]:
        done = subprocess.run([sys.executable, *program, "-h"], capture_output=True, text=True, cwd=ROOT)
        assert set(words) <= set(re.findall(r"[a-z-]+", done.stdout)), program
    projects = GUIDE.split("## Three projects")[1]
    assert projects.count("*Control*") == 3 and projects.count("*Question*") == 3
