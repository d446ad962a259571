"""The grading report: which exercises pass, student by student, from a folder of submissions.

Answers come from a process of the submission's own (`grading_process`) and are judged here, on the
known cases and on withheld ones.  What was graded is kept beside the report, so an unchanged
submission is not graded again.
"""

import csv
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from prehab_lib import grading_process
from prehab_lib.course import asked_in, exercises_of
from prehab_lib.exercises import Exercise, answers
from prehab_lib.exercises.answer_key import PASSED, UNTRIED, AnswerKey
from prehab_lib.exercises.answers import NOTHING
from prehab_lib.grading_process import Limits, Outcome
from prehab_lib.runs.store import replacing
from prehab_lib.submission import MISSING
from prehab_lib.submissions import NAMELESS, Submission, find

NO_MEMORY = ("MemoryError", "allocate memory", "bad_alloc", "bad allocation")
BEYOND = "right on the cases it was shown, not on others"


@dataclass(frozen=True)
class Row:
    """A line of the report.  verdict: passed, wrong, not tried, stopped, time limit, memory limit,
    missing, unreadable.
    """

    student: str
    notebook: str
    exercise: str
    verdict: str
    hint: str
    seconds: float


def grade(
    folder: Path,
    out: Path,
    notebooks: dict[str, Path],
    limits: Limits,
    jobs: int,
    say: Callable,
    others: Iterable[str] = (),
) -> list[Row]:
    """Grade every submission and write the report; rows by student, notebook, exercise.

    notebooks: name -> file of those that count; of them, a student's that is not there is missing
    where another student has it.  others: notebooks of the course that do not count, left alone.
    Raises as `submissions.find` does, and ValueError where nothing that counts is there.
    """
    handed_in = find(folder, [*notebooks, *others])
    submissions = [one for one in handed_in if one.notebook in notebooks or one.notebook is None]
    if not submissions:
        raise ValueError(
            f"{folder} holds none of {', '.join(notebooks)}: name others with --notebooks, or none for all"
        )
    memory = Memory(out.with_suffix(".graded.jsonl"))
    given = {one.notebook for one in submissions} & set(notebooks)
    rows: list[Row] = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            graded = pool.map(lambda one: _graded(one, notebooks, limits, memory), submissions)
            for one, found in zip(submissions, graded, strict=True):
                rows += found
                passed = sum(row.verdict == PASSED for row in found)
                say(f"{one.student}  {one.notebook or one.file.name}  {passed} of {len(found)}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows += _absent(handed_in, {name: notebooks[name] for name in sorted(given)})
    rows.sort(key=lambda row: (row.student, row.notebook, _number(row.exercise)))
    write(rows, out)
    return rows


def judge(exercise: Exercise, outcome: Outcome, name: str = "f") -> tuple[str, str]:
    """(verdict, hint).  Nothing but right answers passes, whatever else came back.  name: of the
    function.
    """
    trouble = outcome.ended or outcome.answered.trouble
    if trouble in (UNTRIED, MISSING):
        return ("not tried", "") if trouble == UNTRIED else ("missing", "no function of that name")
    if trouble == NOTHING:
        return "wrong", NOTHING
    if trouble == "time limit":
        return "time limit", f"not done after {outcome.seconds:.0f} s"
    if trouble and any(word in trouble for word in NO_MEMORY):
        return "memory limit", trouble
    key, known = AnswerKey.of(exercise, withheld=True), AnswerKey.of(exercise)
    hints = {hint for _, hint in key.slips}
    if trouble:
        hint = key.judge(answers.Answered(outcome.answered.answers, trouble), name)
        return "wrong" if hint in hints else "stopped", hint
    verdict = key.judge(outcome.answered, name)
    if verdict == PASSED:
        return PASSED, ""
    shown = answers.Answered(outcome.answered.answers[: len(known.cases)])
    if verdict not in hints and known.judge(shown, name) == PASSED:
        return "wrong", f"{BEYOND}: {verdict.removeprefix('not yet: ')}"
    return "wrong", verdict if verdict in hints else known.judge(shown, name)


def _graded(
    one: Submission, notebooks: dict[str, Path], limits: Limits, memory: "Memory"
) -> list[Row]:
    if one.fault or one.notebook is None:
        ids = exercises_of(notebooks[one.notebook]) if one.notebook else {"": ""}
        return [
            Row(one.student, one.notebook or one.file.name, id, "unreadable", one.fault or "", 0.0)
            for id in ids
        ]
    source = notebooks[one.notebook]
    key = memory.key(one.file, source, limits)
    rows = memory.recall(key)
    if rows is None:
        exercises = asked_in(source)
        asked = [
            grading_process.Exercise(id, name, exercise.cases + exercise.withheld)
            for id, (name, exercise) in exercises.items()
        ]
        outcomes = grading_process.ask(one.file, one.notebook, asked, limits)
        rows = [
            [id, *judge(exercise, outcomes[id], name), outcomes[id].seconds]
            for id, (name, exercise) in exercises.items()
        ]
        memory.keep(key, rows)
    return [
        Row(one.student, one.notebook, id, verdict, hint, round(seconds, 1))
        for id, verdict, hint, seconds in rows
    ]


def _absent(submissions: list[Submission], notebooks: dict[str, Path]) -> list[Row]:
    here = {(one.student, one.notebook) for one in submissions}
    return [
        Row(student, name, id, "missing", "not handed in", 0.0)
        for student in sorted({one.student for one in submissions if one.fault != NAMELESS})
        for name, file in notebooks.items()
        if (student, name) not in here
        for id in exercises_of(file)
    ]


class Memory:
    """What was graded, one JSON line a submission, by a key of everything that decides its rows."""

    def __init__(self, file: Path):
        self.file = file
        self.known: dict[str, list] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                kept = json.loads(line)
                self.known[kept["key"]] = kept["rows"]
            except (ValueError, KeyError, TypeError):
                continue  # the last line of a grading that was killed

        self.library = _digest(
            file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py"))
        )
        self.lock = threading.Lock()

    def key(self, submission: Path, notebook: Path, limits: Limits) -> str:
        texts = (
            submission.read_bytes(),
            notebook.read_bytes(),
            repr(limits).encode(),
            self.library,
        )
        return _digest(texts).hex()[:16]

    def recall(self, key: str) -> list | None:
        return self.known.get(key)

    def keep(self, key: str, rows: list) -> None:
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            self.known[key] = rows
            file.write(
                "\n" * (file.tell() > 0)
                + json.dumps({"key": key, "rows": rows}, ensure_ascii=False)
            )


def _digest(texts: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).digest()


def write(rows: Iterable[Row], out: Path) -> None:
    """The report as CSV (UTF-8, with the mark that spreadsheets look for): the old file or the new
    one, never half of it.
    """
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([column.name for column in fields(Row)])
    table.writerows([_harmless(cell) for cell in asdict(row).values()] for row in rows)
    with replacing(out) as draft:
        draft.write_text(text.getvalue(), encoding="utf-8-sig", newline="")


def _harmless(cell):
    """A spreadsheet takes text that begins so for a formula."""
    return (
        f"'{cell}"
        if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r")
        else cell
    )


def _number(id: str) -> list[int]:
    return [int(part) for part in id.split(".") if part.isdigit()]
