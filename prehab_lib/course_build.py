"""`make course`: course/_build/student, a folder to hand out, and course/_build/teacher, with the
solutions folded in.
"""

import json
import os
import re
import shutil
from pathlib import Path

from prehab_lib import course, course_pages, course_student, course_written
from prehab_lib.course import CALL, Course
from prehab_lib.exercises import answer_key
from prehab_lib.exercises.answer_key import AnswerKey

LIBRARY = Path(__file__).resolve().parent
STUDENTS_TOO = ("LICENSE", "Makefile", "pyproject.toml", "requirements.lock", "environment.yml")
REDUCED = {"Makefile": course_student.makefile, "environment.yml": course_student.environment}
POINTS_AT_SOLUTIONS = re.compile(r" ?(?:Executed s|S)olutions(?: are in|:) [^\n|]*?(?=\n|\||$)")
LINK = re.compile(r"\]\((\d\d_\w+)\.ipynb\)")
STUB = re.compile(
    r"^def \w+\([^\n]*\):(?:\s+(?:\"\"\"(?:(?!\"\"\").)*\"\"\"|\"[^\n]*\"|'[^\n]*'))?\s+\.\.\.$",
    re.MULTILINE | re.DOTALL,
)


def build(root: Path) -> Path:
    """Write both folders anew; the folder above them.

    Raises ValueError where a notebook is not ready to be handed out, and where the folder holds
    what no build wrote.
    """
    lectures = course.load(root)
    out = root / "course" / "_build"
    course_written.refuse_to_lose(out)
    part = out.with_name(f"_build.part.{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _library(part / "student")
        for name in STUDENTS_TOO:
            text = REDUCED.get(name, str)((root / name).read_text(encoding="utf-8"))
            (part / "student" / name).write_text(text, encoding="utf-8")
        (part / "student" / "README.md").write_text(
            course_pages.for_students(lectures), encoding="utf-8"
        )
        for lecture in lectures.lectures:
            place = f"lecture{lecture.number}"
            for name in lecture.notebooks:
                _write(
                    students(root, name, lectures),
                    part / "student" / "notebooks" / place / f"{name}.ipynb",
                )
                _write(teachers(root, name, lectures), part / "teacher" / place / f"{name}.ipynb")
            (part / "teacher" / place / "plan.md").write_text(
                course_pages.plan(lecture), encoding="utf-8"
            )
        course_written.record(part)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _library(student: Path) -> None:
    """The library, with answers in the place of solutions."""
    target = student / "prehab_lib"
    shutil.copytree(
        LIBRARY, target, ignore=shutil.ignore_patterns("__pycache__", "ex[0-9][0-9].py")
    )
    for file in sorted((LIBRARY / "exercises").glob("ex[0-9][0-9].py")):
        known = course.module_of(file.stem).EXERCISES
        keys = {id: AnswerKey.of(exercise) for id, exercise in known.items()}
        answer_key.write(keys, target / "exercises" / f"{file.stem}.json")


def students(root: Path, name: str, lectures: Course) -> dict:
    """The notebook with blank exercises, and no word on where solutions are or on what this copy
    has not.

    Raises ValueError where an exercise is not blank.
    """
    notebook = _read(root / "notebooks" / f"{name}.ipynb")
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = course_student.words(
                _linked(POINTS_AT_SOLUTIONS.sub("", source), lectures, name)
            )
            if "olutions" in cell["source"]:
                raise ValueError(
                    f"{name}: a text cell tells students of solutions: {cell['source'][:80]!r}"
                )
        elif (call := CALL.search(source)) and not STUB.search(source):
            raise ValueError(
                f"{name}: exercise {call[1]} is not blank: its function must be a docstring and ... alone"
            )
    notebook["cells"] = [
        cell for cell in notebook["cells"] if cell["cell_type"] != "markdown" or cell["source"]
    ]
    return notebook


def teachers(root: Path, name: str, lectures: Course) -> dict:
    """The notebook with each solution folded in behind its exercise: why, the cells, minutes, and
    the usual slips.
    """
    notebook = _read(root / "notebooks" / f"{name}.ipynb")
    solved = _read(root / "notebooks" / "solutions" / f"{name}.ipynb")["cells"]
    folded, imports = _by_exercise(solved)
    known, lecture, cells = (
        course.asked_in(root / "notebooks" / f"{name}.ipynb"),
        lectures.lecture_of(name),
        [],
    )
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _linked(
                POINTS_AT_SOLUTIONS.sub("", "".join(cell["source"])), lectures, name
            )
        cells.append(cell)
        call = CALL.search("".join(cell["source"])) if cell["cell_type"] == "code" else None
        if call:
            (why, code), mark = folded[call[1]], f"solution-{call[1].replace('.', '-')}"
            text = course_pages.folded(call[1], why, lecture, known[call[1]][1])
            cells.append({"cell_type": "markdown", "id": mark, "metadata": {}, "source": text})
            cells += [
                _hidden(one, f"{mark}-{number}") for number, one in enumerate([*imports, *code], 1)
            ]
            imports = []
    notebook["cells"] = cells
    return notebook


def _by_exercise(cells: list[dict]) -> tuple[dict[str, tuple[str, list[dict]]], list[dict]]:
    """Exercise -> (the text before its check, its code and what is shown after it); and the cells
    of imports.
    """
    groups: dict[str, tuple[str, list[dict]]] = {}
    imports, id = [], None
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (start := re.match(r"\*\*(\d+\.\d+)\*\* ", source)):
            id = start[1]
            groups[id] = source[start.end() :], []
        elif id is None:
            imports += [cell] if cell["cell_type"] == "code" else []
        else:
            groups[id][1].append(cell)
    return groups, imports


def _hidden(cell: dict, id: str) -> dict:
    """Folded in JupyterLab, and on a site built by MyST.  Its count is left out: it ran in another
    notebook.
    """
    if cell["cell_type"] != "code":
        return cell | {"id": id, "metadata": {}}
    return cell | {
        "id": id,
        "metadata": {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]},
        "execution_count": None,
        "outputs": [
            out | ({"execution_count": None} if "execution_count" in out else {})
            for out in cell["outputs"]
        ],
    }


def _linked(source: str, lectures: Course, name: str) -> str:
    """Links between notebooks, which lie in one folder there and in a folder a lecture here; to one
    that is not here, none.
    """
    folders = {
        one: f"lecture{lecture.number}"
        for lecture in lectures.lectures
        for one in lecture.notebooks
    }
    here = folders[name]

    def relative(match: re.Match) -> str:
        there = folders.get(match[1])
        if there is None:
            return "]"
        return f"]({match[1]}.ipynb)" if there == here else f"](../{there}/{match[1]}.ipynb)"

    return LINK.sub(relative, source)


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _write(notebook: dict, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
