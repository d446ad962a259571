"""`python course/grade.py SUBMISSIONS --out report.csv`: which exercises pass, student by student.

Each submission runs in a process of its own (submission.py), in a temporary folder with a copy of the library without
solutions and answers, and is told the cases alone. Its answers leave that process as JSON; right and wrong are decided
here, on the known cases and on withheld ones. No security sandbox: see README.md.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's library, installed or not

from prehab_lib.exercises import asked_in, solved  # noqa: E402
from prehab_lib.exercises.answers import NOTHING, UNTRIED, Answered, decode, encode  # noqa: E402
from prehab_lib.exercises.checks import PASSED, AnswerKey  # noqa: E402

LEFT_OUT = shutil.ignore_patterns("__pycache__", "ex[0-9][0-9].*")
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")  # of the grader's environment
OWN = {"MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
TIME = "time limit"
WITHOUT_ANSWERS = {  # trouble -> (verdict, hint)
    UNTRIED: ("not tried", ""),
    "missing": ("missing", "no function of that name"),
    NOTHING: ("wrong", NOTHING),
    TIME: (TIME, "the notebook's answers took too long, this one last"),
}


@dataclass(frozen=True)
class Row:
    """A line of the report. verdict: passed, wrong, not tried, stopped, time limit, missing, unreadable."""

    student: str
    notebook: str
    exercise: str
    verdict: str
    hint: str = ""


@dataclass(frozen=True)
class Limits:
    """Of a submission's process. whole: run every cell, not only imports, definitions and constants."""

    seconds: float = 60.0
    memory_gb: float = 4.0
    whole: bool = False


def find(folder: Path, notebooks: list[str]) -> dict[tuple[str, str], Path]:
    """(student, notebook) -> file; of two files for one notebook the one changed last. An unknown notebook's name is "".

    A folder below FOLDER is a student with all notebooks in it. A file that lies in FOLDER itself is the student's whose
    name is left when the notebook's is taken out of the file's. Raises FileNotFoundError where nothing is there.
    """
    files = []
    for file in folder.rglob("*.ipynb"):
        hidden = any(part.startswith((".", "__MACOSX")) for part in file.relative_to(folder).parts)
        if file.is_file() and not file.is_symlink() and not hidden:
            files.append(file)
    if not files:
        raise FileNotFoundError(f"{folder} holds no .ipynb file: unpack the submissions there, a folder a student")
    submissions = {}
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
        notebook = next((name for name in notebooks if name in file.stem or _says(file, name)), "")
        student, *below = file.relative_to(folder).parts
        if not below:
            student = file.stem.replace(notebook, "").strip(" _-.") or file.name
        submissions[student, notebook] = file
    return submissions


def _says(file: Path, name: str) -> bool:
    """Whether a renamed file is this notebook, by what its parameters are checked against."""
    return f'parameters.check(\\"{name}\\"' in file.read_text(encoding="utf-8", errors="replace")


def ask(file: Path, exercises: dict[str, str], limits: Limits) -> dict[str, Answered]:
    """What a submission answers, exercise by exercise. exercises: id -> name of the function.

    Where an exercise takes the process down, the ones behind it get a new one.
    """
    answered: dict[str, Answered] = {}
    while len(answered) < len(exercises):
        remaining = {id: name for id, name in exercises.items() if id not in answered}
        with tempfile.TemporaryDirectory(prefix="submission-", ignore_cleanup_errors=True) as folder:
            reports, ended = _one_process(Path(folder), file, remaining, limits)
        for id, line in zip(remaining, reports, strict=False):
            answered[id] = _read(line, id)
        if len(reports) < len(remaining):
            answered[list(remaining)[len(reports)]] = Answered([], ended)
    return answered


def _one_process(folder: Path, file: Path, exercises: dict[str, str], limits: Limits) -> tuple[list[bytes], str]:
    """The reports of a submission's process, and how it ended."""
    shutil.copytree(ROOT / "prehab_lib", folder / "prehab_lib", ignore=LEFT_OUT)
    program = shutil.copy(Path(__file__).with_name("submission.py"), folder)
    notebook, reports = shutil.copy(file, folder / "notebook.ipynb"), folder / "reports"
    asked = []
    for id, name in exercises.items():
        cases = solved(id).cases + solved(id).withheld
        asked.append({"id": id, "name": name, "cases": [encode(list(case)) for case in cases]})
    task = {"notebook": str(notebook), "reports": str(reports), "exercises": asked}
    task |= {"whole": limits.whole, "memory_gb": limits.memory_gb}
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-I", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=own | OWN | {"HOME": str(folder), "TMPDIR": str(folder)},
        start_new_session=True,
    ) as process:
        try:
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()  # and left open: the process ends when this one does
            code = process.wait(limits.seconds)
            ended = "it ended by itself" if code >= 0 else f"it was ended by {signal.Signals(-code).name}"
        except subprocess.TimeoutExpired:
            ended = TIME
        except BrokenPipeError:
            ended = "it ended by itself"
        finally:
            process.kill()
            with contextlib.suppress(AttributeError, ProcessLookupError):  # Windows has no groups; or all have ended
                os.killpg(process.pid, signal.SIGKILL)  # what it has started
    lines = reports.read_bytes().splitlines(keepends=True) if reports.is_file() else []
    return [line for line in lines if line.endswith(b"\n")], ended


def _read(line: bytes, id: str) -> Answered:
    """One report. A submission may have written what it likes there."""
    try:
        report = json.loads(line)
        answers, trouble = decode(report["answers"]), report["trouble"]
        cases = len(solved(id).cases + solved(id).withheld)
        if report["id"] != id or len(answers) > cases or not (trouble or len(answers) == cases):
            raise ValueError
        return Answered(list(answers), None if trouble is None else str(trouble))
    except Exception:
        return Answered([], "no report")


def judge(id: str, answered: Answered, name: str) -> tuple[str, str]:
    """(verdict, hint). Nothing but right answers passes, whatever else came back."""
    trouble = answered.trouble
    if trouble in WITHOUT_ANSWERS:
        return WITHOUT_ANSWERS[trouble]
    key, known = AnswerKey.of(solved(id), withheld=True), AnswerKey.of(solved(id))
    verdict = key.judge(answered, name)
    if verdict == PASSED and trouble is None:
        return PASSED, ""
    if verdict in {hint for _, hint in key.slips}:
        return "wrong", verdict
    if trouble:
        return "stopped", trouble
    shown = known.judge(Answered(answered.answers[: len(known.cases)]), name)
    if shown == PASSED:
        return "wrong", f"right on the cases it was shown, not on others: {verdict.removeprefix('not yet: ')}"
    return "wrong", shown


def grade(folder: Path, notebooks: dict[str, Path], chosen: list[str], limits: Limits, jobs: int = 2) -> list[Row]:
    """Rows by student, notebook and exercise. chosen: the notebooks that count, others are left alone.

    A student's that is not there is missing where another student has it.
    """
    submissions = find(folder, list(notebooks))
    counted = {key: file for key, file in submissions.items() if key[1] in chosen or not key[1]}

    def graded(key: tuple[str, str]) -> list[Row]:
        student, name = key
        if not name:
            return [Row(student, counted[key].name, "", "unreadable", "which notebook it is cannot be told")]
        exercises = asked_in(notebooks[name])
        try:
            json.loads(counted[key].read_text(encoding="utf-8"))["cells"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return [Row(student, name, id, "unreadable", f"{counted[key].name} is no notebook") for id in exercises]
        answered = ask(counted[key], exercises, limits)
        rows = [Row(student, name, id, *judge(id, answered[id], function)) for id, function in exercises.items()]
        print(f"{student}  {name}  {sum(row.verdict == PASSED for row in rows)} of {len(rows)}", flush=True)
        return rows

    with ThreadPoolExecutor(jobs) as pool:
        rows = [row for some in pool.map(graded, counted) for row in some]
    given = {name for _, name in counted if name}
    for student in {student for student, _ in submissions}:
        for name in given - {name for author, name in submissions if author == student}:
            rows += [Row(student, name, id, "missing", "not handed in") for id in asked_in(notebooks[name])]
    return sorted(rows, key=lambda row: (row.student, row.notebook, len(row.exercise), row.exercise))


def write(rows: list[Row], out: Path) -> None:
    """The report as CSV, with the mark that spreadsheets look for."""
    with out.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file)
        table.writerow([column.name for column in fields(Row)])
        for row in rows:  # a spreadsheet takes text that begins so for a formula
            table.writerow([f"'{cell}" if cell[:1] in tuple("=+-@\t\r") else cell for cell in astuple(row)])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Which exercises pass, student by student, as CSV; no sandbox.")
    add = parser.add_argument
    add("folder", type=Path, help="a folder a student, or notebooks with the student's name in theirs")
    add("--out", type=Path, default=Path("report.csv"), help="the report (report.csv)")
    add("--notebooks", nargs="+", default=[], metavar="NN", help="01 or 01_surrogates; all if none is named")
    add("--seconds", type=float, default=60.0, help="for the answers of a notebook, its imports included (60)")
    add("--memory", type=float, default=4.0, metavar="GB", help="of a submission's process (4; Linux)")
    add("--whole", action="store_true", help="run all cells, not only imports, definitions and constants")
    add("-j", type=int, default=2, metavar="N", help="submissions at a time (2)")
    given = parser.parse_args(words)
    files = {file.stem: file for file in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")) if asked_in(file)}
    chosen = [name for name in files if not given.notebooks or {name, name[:2]} & set(given.notebooks)]
    try:
        for word in given.notebooks:
            if word not in {*files, *(name[:2] for name in files)}:
                raise ValueError(f"{word!r} is no notebook with exercises: choose among {', '.join(files)}")
        if min(given.seconds, given.memory, given.j) <= 0:
            raise ValueError("--seconds, --memory and -j need numbers above 0")
        if not given.out.absolute().parent.is_dir():
            raise FileNotFoundError(f"{given.out}: there is no such folder to write the report to")
        rows = grade(given.folder, files, chosen, Limits(given.seconds, given.memory, given.whole), given.j)
        write(rows, given.out)
    except (ValueError, FileNotFoundError) as error:
        print(f"grade: {error}", file=sys.stderr)
        return 2
    students = len({row.student for row in rows})
    passed = sum(row.verdict == PASSED for row in rows)
    print(f"students: {students}, exercises passed: {passed} of {len(rows)}; written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
