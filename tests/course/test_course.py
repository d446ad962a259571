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

from prehab_lib import course, course_build
from prehab_lib.__main__ import main
from prehab_lib.exercises.ex00 import EXERCISES
from prehab_lib.needed_statements import parse
from prehab_lib.runs import keys

ROOT = Path(__file__).resolve().parents[2]
COURSE = course.load(ROOT)
LESSONS = {name: lecture for lecture in COURSE.lectures for name in lecture.notebooks}
ASKED = {name: course.exercises_of(ROOT / "notebooks" / f"{name}.ipynb") for name in LESSONS}


def repository(home: Path) -> Path:
    """A checkout to build in, its notebooks linked."""
    home.mkdir(exist_ok=True)
    for name in ("notebooks", *course_build.STUDENTS_TOO):
        (home / name).symlink_to(ROOT / name)
    (home / "course").mkdir()
    for name in ("course.yaml", "README.md"):
        shutil.copy(ROOT / "course" / name, home / "course")
    return home


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """course/_build, as the command writes it."""
    home = repository(tmp_path_factory.mktemp("home"))
    before = Path.cwd()
    os.chdir(home)
    try:
        assert main(["course"]) == 0
        assert main(["course"]) == 0  # again, over what is there
    finally:
        os.chdir(before)
    assert sorted(path.name for path in (home / "course").iterdir()) == ["README.md", "_build", "course.yaml"]
    return home / "course" / "_build"


def cells(file: Path, kind="code") -> list[str]:
    content = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in content if cell["cell_type"] == kind]


def notebooks(built: Path, who: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted((built / who).rglob("lecture*/*.ipynb"))}


def test_students_get_no_solution(built):
    student = built / "student"
    modules = {file.stem for file in (ROOT / "prehab_lib" / "exercises").glob("ex[0-9][0-9].py")}
    assert {file.name for file in (student / "prehab_lib" / "exercises").iterdir()} == {
        "__init__.py",
        *(f"{name}.json" for name in modules),
    }
    assert not [file for file in student.rglob("*") if "solutions" in file.parts]
    assert not [file for file in student.rglob("*.py") if "EXERCISES = {\n" in file.read_text(encoding="utf-8")]
    for name in modules:
        told = json.loads((student / "prehab_lib" / "exercises" / f"{name}.json").read_text(encoding="utf-8"))
        assert {key for one in told["exercises"].values() for key in one} == {"cases", "wanted", "slips"}
        assert {key for one in told["exercises"].values() for slip in one["slips"] for key in slip} == {
            "hint",
            "answers",
        }


@pytest.mark.parametrize("name", LESSONS)
def test_a_students_notebook_is_blank_and_tells_no_solution(built, name):
    file = notebooks(built, "student")[name]
    defined = [s.code for s in parse(cells(file))[0] if getattr(s.code, "name", None) in ASKED[name].values()]
    assert sorted(function.name for function in defined) == sorted(ASKED[name].values())
    for function in defined:
        body = ast.unparse(function.body[1:] if ast.get_docstring(function) else function.body)
        assert body.strip() == "..."
    text = "\n".join(cells(file, "markdown"))
    assert not re.search("olutions|colab|mybinder|git clone", text + "\n".join(cells(file)))
    for reason in cells(ROOT / "notebooks" / "solutions" / f"{name}.ipynb", "markdown")[1:]:
        assert reason.removeprefix("**").strip()[-60:] not in text


def test_every_notebook_with_exercises_is_in_a_lecture_and_whole(built):
    withs = [file.stem for file in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb") if course.exercises_of(file)]
    for who in ("student", "teacher"):
        found = notebooks(built, who)
        assert sorted(found) == sorted(withs) == sorted(LESSONS)
        for name, file in found.items():
            assert file.parent.name == f"lecture{LESSONS[name].number}"
            nbformat.validate(nbformat.read(file, as_version=4))
            assert set(keys.code_cells(ROOT / "notebooks" / f"{name}.ipynb")) <= set(cells(file))
            assert course.exercises_of(file).keys() == ASKED[name].keys()


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_links_lead_somewhere(built, who):
    seen = 0
    for file in notebooks(built, who).values():
        for link in re.findall(r"\]\(([^)#:]+)\)", "\n".join(cells(file, "markdown"))):
            assert (file.parent / link).exists(), f"{file.name}: {link}"
            seen += 1
    assert seen > 20


def student_python(built: Path, script: str, *words: str) -> str:
    """What a script prints that sees the student's library, and not this one."""
    own = os.environ | {"PYTHONPATH": str(built / "student"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=own, cwd=built / "student"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


ALL_CHECKS = r"""
import json, re, sys
import prehab_lib
from prehab_lib import checks
from prehab_lib.__main__ import main

assert prehab_lib.__file__.startswith(sys.argv[1])
for file in sys.argv[2:]:
    for cell in json.load(open(file, encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.search(r"^check\(", source, re.M):
            exec(source, {"check": checks.check, "__name__": "x"})
checks.check("0.2", lambda s, rank: s[rank:].square().sum().sqrt())
checks.check("0.2", lambda s, rank: s[rank:].sum())
checks.check("10.3", lambda one, other, higher_is_better: (0, 0))
print(main(["grade", "handed_in"]))
"""


def test_students_checks_work_without_a_solution(built):
    """Stubs are untried, right answers pass, slips get their hints; and grading is not for this copy."""
    files = [str(file) for file in notebooks(built, "student").values()]
    (built / "student" / "handed_in").mkdir(exist_ok=True)
    *stubs, right, slip, other, code = student_python(built, ALL_CHECKS, str(built / "student"), *files).splitlines()
    assert (
        stubs == [f"exercise {id}: not tried yet" for name in sorted(ASKED) for id in ASKED[name]] and len(stubs) >= 37
    )
    assert right == "exercise 0.2: passed" and slip == f"exercise 0.2: {EXERCISES['0.2'].slips[1][1]}"
    assert re.fullmatch(r"exercise 10.3: not yet: f\(.*\) gives \[0, 0\], wanted \[1, 3\]", other) and code == "2"


def test_a_students_notebook_runs_from_top_to_bottom(built):
    script = """
import sys, nbformat
from pathlib import Path
from nbclient import NotebookClient
file = Path(sys.argv[1])
book = nbformat.read(file, as_version=4)
NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(file.parent)}}).execute()
print("".join(out["text"] for cell in book.cells[-9:] for out in cell.get("outputs", [])), end="")
"""
    said = student_python(built, script, str(notebooks(built, "student")["00_start_here"]))
    assert said == "".join(f"exercise {id}: not tried yet\n" for id in EXERCISES)


@pytest.mark.parametrize("name", LESSONS)
def test_teachers_get_every_solution_folded_in_behind_its_exercise(built, name):
    found = nbformat.read(notebooks(built, "teacher")[name], as_version=4).cells
    known = course.asked_in(ROOT / "notebooks" / f"{name}.ipynb")
    for id, (function, exercise) in known.items():
        [stub, *_] = [n for n, cell in enumerate(found) if f'check("{id}", {function})' in cell.source]
        assert course_build.STUB.search(found[stub].source)
        note = found[stub + 1].source
        assert note.startswith("<details>") and note.endswith("</details>") and f"Solution of {id}" in note
        assert f"{LESSONS[name].minutes[id]} minutes" in note and all(hint in note for _, hint in exercise.slips)
        rest = [cell for cell in found[stub + 2 :] if cell.cell_type == "code"]
        solved = next(cell for cell in rest if f'check("{id}", {function})' in cell.source)
        assert solved.metadata.jupyter.source_hidden and f"exercise {id}: passed" in str(solved.outputs)
    assert f"# Lecture {LESSONS[name].number}: " in (notebooks(built, "teacher")[name].parent / "plan.md").read_text(
        "utf-8"
    )
