"""Starts a submission's process, with its limits, and collects what it answers.  No security
sandbox: see course/README.md.

The process gets a temporary folder as its home, with the notebook and a copy of the library without
solutions, answers and checks; this checkout is not on its path.  It is told the cases, never the
answers.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from prehab_lib.exercises.answers import Answered
from prehab_lib.exercises.coding import decode, encode
from prehab_lib.submission import LONGEST

LIBRARY = Path(__file__).resolve().parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", "ex[0-9][0-9].*", "checks.py")
NO_CHECKS = '"""While an answer is graded nothing is checked in its own process."""\n\n\ndef check(id, function):\n    pass\n'
START = """
import os, sys
library = sys.argv.pop()
here = lambda folder: os.path.isdir(f"{folder}/prehab_lib") and os.path.isfile(f"{folder}/pyproject.toml")
sys.path[:] = [library, *(folder for folder in sys.path if not here(folder))]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in f"{finder} {type(finder)}".lower()]
from prehab_lib.submission import main
main()
"""
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TEMP", "TMP")
OWN = {
    "MPLBACKEND": "agg",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONHASHSEED": "0",
}
SPARE_PROCESSES = 200  # beside those that this user has already
TOKEN = "PREHAB_SUBMISSION"


@dataclass(frozen=True)
class Limits:
    """Of a submission.  seconds: for each exercise, its imports included.  memory_gb: of its
    process (Linux).  whole: run every cell, not only what the answers need.
    """

    seconds: float = 60.0
    memory_gb: float = 4.0
    whole: bool = False


@dataclass(frozen=True)
class Exercise:
    """What a submission is asked: the exercise's id, the name of the function, and the cases."""

    id: str
    name: str
    cases: list[tuple]


@dataclass(frozen=True)
class Outcome:
    """What came back for an exercise.  ended: why the process stopped there ("time limit", "it
    ended by itself", ...).
    """

    answered: Answered
    seconds: float
    ended: str | None = None


def ask(notebook: Path, name: str, exercises: list[Exercise], limits: Limits) -> dict[str, Outcome]:
    """The outcome of each exercise, by id.  Where one takes the process down, the next ones get a
    new one.
    """
    found: dict[str, Outcome] = {}
    while left := [exercise for exercise in exercises if exercise.id not in found]:
        with tempfile.TemporaryDirectory(
            prefix="submission-", ignore_cleanup_errors=True
        ) as folder:
            found |= _one_process(_prepare(Path(folder), notebook, name), left, limits)
    return found


def _prepare(folder: Path, notebook: Path, name: str) -> Path:
    """FOLDER/work/NAME.ipynb and the library beside it."""
    library, work = folder / "library" / "prehab_lib", folder / "work"
    shutil.copytree(LIBRARY, library, ignore=LEFT_OUT)
    (library / "checks.py").write_text(NO_CHECKS, encoding="utf-8")
    work.mkdir()
    return Path(shutil.copyfile(notebook, work / f"{name}.ipynb"))


def _one_process(notebook: Path, exercises: list[Exercise], limits: Limits) -> dict[str, Outcome]:
    folder, token = notebook.parents[1], uuid.uuid4().hex
    own = {name: os.environ[name] for name in KEPT if name in os.environ} | OWN
    own |= {
        TOKEN: token,
        "HOME": str(folder / "work"),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", START, str(folder / "library")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=notebook.parent,
        env=own,
        start_new_session=True,
    )
    try:
        _tell(process, notebook, exercises, limits)
        return _listen(process, exercises, limits.seconds)
    finally:
        _end(process, token)


def _tell(process, notebook: Path, exercises: list[Exercise], limits: Limits) -> None:
    asked = [
        {"id": e.id, "name": e.name, "cases": [encode(list(case)) for case in e.cases]}
        for e in exercises
    ]
    task = {
        "notebook": str(notebook),
        "exercises": asked,
        "whole": limits.whole,
        "grader": os.getpid(),
    }
    task |= {"memory_gb": limits.memory_gb, "processes": _processes()}
    try:
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.close()
    except BrokenPipeError:
        pass  # it is dead already, and listening will tell


def _listen(process, exercises: list[Exercise], seconds: float) -> dict[str, Outcome]:
    lines: queue.Queue = queue.Queue(maxsize=len(exercises) + 1)
    threading.Thread(
        target=_read, args=(process.stdout, lines, len(exercises)), daemon=True
    ).start()
    found = {}
    for exercise in exercises:
        started = time.monotonic()
        try:
            line = lines.get(timeout=seconds)
        except queue.Empty:
            return found | {exercise.id: Outcome(Answered([]), seconds, "time limit")}
        try:
            report = json.loads(line)
            answered = Answered(decode(report["answers"] or []), report["trouble"])
            if report["id"] != exercise.id or (
                not answered.trouble and len(answered.answers) != len(exercise.cases)
            ):
                raise ValueError
        except Exception:  # a submission may write what it likes here
            took = time.monotonic() - started
            return found | {
                exercise.id: Outcome(
                    Answered([]), took, _last_words(process) if not line else "no report"
                )
            }
        found[exercise.id] = Outcome(answered, time.monotonic() - started)
    return found


def _read(stream, lines: queue.Queue, most: int) -> None:
    for _ in range(most):
        line = stream.readline(LONGEST + 2**16)
        lines.put(line)
        if not line:
            return


def _last_words(process) -> str:
    """How the process went, after its reports ended."""
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it closed its report"
    if code >= 0:
        return "it ended by itself"
    return f"it was ended by {signal.Signals(-code).name}"


def _end(process, token: str) -> None:
    """Kill the process, what is in its session, and what has left it: children keep the environment
    they were started with.
    """
    if sys.platform == "win32":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(5):
        if not (left := _marked(token)):
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _marked(token: str) -> list[int]:
    """Processes with this token in their environment.  Linux only; elsewhere none are found."""
    mark, found = f"{TOKEN}={token}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def _processes() -> int | None:
    """How many processes and threads this user may have while a submission runs; None where they
    cannot be counted.
    """
    if not Path("/proc/self/task").is_dir():
        return None
    count = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if place.stat().st_uid == os.getuid():
                count += len(os.listdir(place / "task"))
        except OSError:
            continue
    return count + SPARE_PROCESSES
