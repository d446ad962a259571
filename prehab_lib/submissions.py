"""Finds the submissions in a folder: which file is whose, and which notebook of the course it is."""

import json
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

LARGEST = 50 * 2**20  # bytes of a notebook
SKIPPED = {".ipynb_checkpoints", "__MACOSX"}
NAMELESS = "a name is needed: put it in a folder named after the student, or the student's name in its file name"
COPY = re.compile(
    r"(\(\d+\)|copy\W*\d*|\d{1,2})?", re.IGNORECASE
)  # what browsers and systems add to a name


@dataclass(frozen=True)
class Submission:
    """One file.  notebook: its name in the course, None where that cannot be told.  fault: why it
    cannot be read.
    """

    student: str
    file: Path
    notebook: str | None
    fault: str | None = None


def find(folder: Path, notebooks: list[str]) -> list[Submission]:
    """One submission a student and notebook, sorted; of several files for the same one, the file
    changed last.

    A folder in FOLDER is a student with all notebooks below it; a notebook that lies in FOLDER
    itself is a student's too, whose name is what the file name has beside the notebook's; where
    that is nothing, or the mark of a copy, the fault is NAMELESS.  Links are not followed.  Raises
    FileNotFoundError where FOLDER is none, ValueError where it holds no notebook.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: give the one that holds the submissions, a folder a student"
        )
    files = [(_student(file, folder, notebooks), file) for file in _files(folder)]
    if not files:
        raise ValueError(
            f"{folder} holds no .ipynb file: unpack the submissions there first, a folder a student"
        )
    names = _told_apart({raw for raw, _ in files})
    found = {}
    for raw, file in sorted(files, key=lambda item: (item[1].stat().st_mtime_ns, str(item[1]))):
        notebook, fault = _recognised(file, notebooks)
        if raw == file.name:
            fault = NAMELESS
        found[raw, notebook or file.name] = Submission(names[raw], file, notebook, fault)
    return sorted(found.values(), key=lambda one: (one.student, one.notebook or "~", str(one.file)))


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        paths = [
            Path(place, name)
            for name in files
            if name.lower().endswith(".ipynb") and not name.startswith(".")
        ]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return sorted(found)


def _student(file: Path, folder: Path, notebooks: list[str]) -> str:
    parts = file.relative_to(folder).parts
    if len(parts) > 1:
        return parts[0]
    for name in notebooks:
        if name in file.stem:
            rest = file.stem.replace(name, "", 1).strip(" _-.")
            return file.name if COPY.fullmatch(rest) else rest.strip(" _-.()")
    return file.stem


def _told_apart(raw: set[str]) -> dict[str, str]:
    """Names as they are shown: composed letters, no undecodable bytes, and no two alike."""
    shown: dict[str, str] = {}
    for name in sorted(raw):
        plain = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
        number, free = 1, plain
        while free in shown.values():
            number += 1
            free = f"{plain} ({number})"
        shown[name] = free
    return shown


def _recognised(file: Path, notebooks: list[str]) -> tuple[str | None, str | None]:
    """By what its parameters cell is checked against, else by its file name; and what is wrong with
    it.
    """
    named = next((name for name in notebooks if name in file.name), None)
    if file.stat().st_size > LARGEST:
        return (
            named,
            f"{file.name} has {file.stat().st_size / 2**20:.0f} MB: more than {LARGEST // 2**20}",
        )
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        text = "\n".join(
            "".join(cell["source"]) for cell in cells if cell.get("cell_type") == "code"
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError):
        return named, f"{file.name} is no notebook"
    told = re.search(r"""parameters\.check\(["'](\w+)["']""", text)
    if told and told[1] in notebooks:
        return told[1], None
    return (
        named,
        None
        if named
        else f"{file.name}: which notebook this is cannot be told from its name or its cells",
    )
