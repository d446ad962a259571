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
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "course")]  # this checkout's library, installed or not

from asked import asked_in, encode  # noqa: E402

from prehab_lib.exercises import solved  # noqa: E402
from prehab_lib.exercises.answers import NOTHING, UNTRIED, Answered, decode  # noqa: E402
from prehab_lib.exercises.checks import PASSED, AnswerKey  # noqa: E402
from prehab_lib.tasks.parameters import content  # noqa: E402

LEFT_OUT = shutil.ignore_patterns("__pycache__", "ex[0-9][0-9].*")
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")  # of the grader's environment
OWN = {"MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
TIME = "time limit"
GRACE = 30  # seconds that a submission's process has beyond its limit, to end what it started
LEAST = 0.5  # GB of memory
LONGEST = 2**27  # bytes of a notebook
PACKED = (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar", ".xz", ".bz2")
_stopped, _active = threading.Event(), set()  # Ctrl-C came; processes of submissions
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


HEAD = [column.name for column in fields(Row)]


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
    files = [place for place in _below(folder, []) if place.suffix == ".ipynb" and place.is_file()]
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


def _below(folder: Path, unread: list[OSError]) -> list[Path]:
    """Everything below a folder but hidden things and links, and into `unread` why a folder is not looked into."""
    found = []
    for place, folders, files in os.walk(folder, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        names = [name for name in (*folders, *files) if not name.startswith(".")]
        found += [path for path in (Path(place, name) for name in names) if not path.is_symlink()]
    return found


def lost(folder: Path, submissions: dict[tuple[str, str], Path]) -> list[Row]:
    """A row for every folder and archive that no submission comes from, and for those that cannot be read."""
    unread: list[OSError] = []
    _below(folder, unread)
    rows = [
        Row(Path(error.filename).relative_to(folder).parts[0], "", "", "unreadable", str(error)) for error in unread
    ]
    students = {student for student, _ in submissions} | {row.student for row in rows}
    for place in sorted(folder.iterdir()):
        if place.is_symlink():
            rows.append(Row(place.name, "", "", "unreadable", "a link, which is not followed"))
        elif place.suffix.lower() in PACKED:
            rows.append(Row(place.name, "", "", "unreadable", "it is packed: unpack it"))
        elif place.is_dir() and place.name not in students and not place.name.startswith((".", "__MACOSX")):
            rows.append(Row(place.name, "", "", "missing", "the folder holds no .ipynb file"))
    return rows


def _says(file: Path, name: str) -> bool:
    """Whether a renamed file is this notebook, by what its parameters are checked against."""
    with contextlib.suppress(OSError):  # who may not read it is told when it is graded
        text = file.read_text(encoding="utf-8", errors="replace") if file.stat().st_size <= LONGEST else ""
        return f'parameters.check(\\"{name}\\"' in text
    return False


def ask(file: Path, exercises: dict[str, str], limits: Limits) -> dict[str, Answered]:
    """What a submission answers, exercise by exercise. exercises: id -> name of the function.

    Where an exercise takes the process down, the ones behind it get a new one.
    """
    answered: dict[str, Answered] = {}
    while len(answered) < len(exercises) and not _stopped.is_set():
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
    shutil.copy(Path(__file__).with_name("asked.py"), folder)
    program = shutil.copy(Path(__file__).with_name("submission.py"), folder)
    notebook, reports = shutil.copy(file, folder / "notebook.ipynb"), folder / "reports"
    asked = []
    for id, name in exercises.items():
        cases = solved(id).cases + solved(id).withheld
        asked.append({"id": id, "name": name, "cases": [encode(list(case)) for case in cases]})
    task = {"notebook": str(notebook), "reports": str(reports), "exercises": asked}
    task |= {"whole": limits.whole, "memory_gb": limits.memory_gb}
    task |= {"seconds": limits.seconds, "overtime": TIME}
    own = {name: os.environ[name] for name in KEPT if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-I", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=own | OWN | {"HOME": str(folder), "TMPDIR": str(folder)},
        start_new_session=True,
    )
    _active.add(process)
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()  # and left open: where it closes, the process ends all that it started, and itself
        if _stopped.is_set():
            _close(process)
        process.wait(limits.seconds + GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        _active.discard(process)
        _close(process)
    ended = folder / "ended"
    ended = ended.read_text(encoding="utf-8") if ended.is_file() else "its process was killed"
    lines = reports.read_bytes().splitlines(keepends=True) if reports.is_file() else []
    return [line for line in lines if line.endswith(b"\n")], ended


def _close(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended, or another thread closes it
        process.stdin.close()


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


def grade(
    folder: Path, notebooks: dict[str, Path], chosen: list[str], limits: Limits, jobs: int = 2, out: Path | None = None
) -> list[Row]:
    """Rows by student, notebook and exercise. chosen: the notebooks that count, others are left alone.

    A student's that is not there is missing where another student has it. out: the report, which is written as it grows.
    On Ctrl-C the rows are those that were there by then.
    """
    submissions = find(folder, list(notebooks))
    counted = {key: file for key, file in submissions.items() if key[1] in chosen or not key[1]}
    rows = lost(folder, submissions)
    given = {name for _, name in counted if name}
    for student in {student for student, _ in submissions}:
        for name in given - {name for author, name in submissions if author == student}:
            rows += [Row(student, name, id, "missing", "not handed in") for id in asked_in(notebooks[name])]

    def graded(key: tuple[str, str]) -> list[Row]:
        name = key[1]
        exercises = asked_in(notebooks[name]) if name else {"": ""}
        try:
            return _graded(*key, counted[key], exercises, limits)
        except OSError as error:  # of this file, and of no other
            return [Row(key[0], name, id, "unreadable", str(error)) for id in exercises]

    _stopped.clear()
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(graded, key) for key in counted]
        try:
            for done in as_completed(pending):
                rows += done.result()
                if out:
                    write(rows, out)
        except KeyboardInterrupt:
            _stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_active):
                _close(process)  # it ends all that it started
    return _sorted(rows)


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.student, row.notebook, len(row.exercise), row.exercise))


def _graded(student: str, name: str, file: Path, exercises: dict[str, str], limits: Limits) -> list[Row]:
    """The rows of one submission."""
    wrong = "" if name else "which notebook it is cannot be told"
    if file.stat().st_size > LONGEST:
        wrong = f"{file.name} is larger than {LONGEST >> 20} MB"
    elif name:
        try:
            content(file)
        except ValueError:
            wrong = f"{file.name} is no notebook"
    if wrong:
        return [Row(student, name or file.name, id, "unreadable", wrong) for id in exercises]
    answered = ask(file, exercises, limits)
    if _stopped.is_set():
        return []
    rows = [Row(student, name, id, *judge(id, answered[id], function)) for id, function in exercises.items()]
    passed = sum(row.verdict == PASSED for row in rows)
    print(f"{_shown(student)}  {name}  {passed} of {len(rows)}", flush=True)
    return rows


def _shown(text: str) -> str:
    """The text in one line that every file and terminal takes: names of files are any bytes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def write(rows: list[Row], out: Path) -> None:
    """The report as CSV, in one step, with the mark that spreadsheets look for."""
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.writer(file)
            table.writerow(HEAD)
            for row in _sorted(rows):  # a spreadsheet takes text that begins so for a formula
                cells = map(_shown, astuple(row))
                table.writerow([f"'{cell}" if cell[:1] in tuple("=+-@\t\r") else cell for cell in cells])
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)


def check_out(out: Path) -> None:
    """Raises ValueError where another file than a report would be replaced, OSError where none can be written."""
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no such folder to write the report to")
    if out.is_dir() or (os.path.lexists(out) and not _is_report(out)):
        raise ValueError(f"--out {out} is no earlier report: name another file, or move it away")
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.touch()
    draft.unlink()


def _is_report(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError), file.open(encoding="utf-8-sig") as text:
        return file.is_file() and text.readline(1000).strip() == ",".join(HEAD)
    return False


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
    files = {file.stem: file for file in sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb")) if asked_in(file)}
    chosen = [name for name in files if not given.notebooks or {name, name.split("_")[0]} & set(given.notebooks)]
    try:
        for word in given.notebooks:
            if word not in {*files, *(name.split("_")[0] for name in files)}:
                raise ValueError(f"{word!r} is no notebook with exercises: choose among {', '.join(files)}")
        if not all(0 < number <= 10**6 for number in (given.seconds, given.memory, given.j)):
            raise ValueError("--seconds, --memory and -j need numbers above 0, at most a million")
        if given.memory < LEAST:
            raise ValueError(f"--memory {given.memory} is too little to start Python and torch: give {LEAST} or more")
        if not given.folder.is_dir() or given.folder == Path():
            raise FileNotFoundError(f"{str(given.folder)!r} is no folder of submissions: name the one that holds them")
        check_out(given.out)
        limits = Limits(given.seconds, given.memory, given.whole)
        rows = grade(given.folder, files, chosen, limits, given.j, given.out)
        write(rows, given.out)
    except KeyboardInterrupt:
        print("grade: stopped before anything was graded", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"grade: {_shown(str(error))}", file=sys.stderr)
        return 2
    if _stopped.is_set():
        print(f"grade: stopped; what was graded by then is in {given.out}", file=sys.stderr)
        return 130
    students = len({row.student for row in rows})
    passed = sum(row.verdict == PASSED for row in rows)
    print(f"students: {students}, exercises passed: {passed} of {len(rows)}; written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
