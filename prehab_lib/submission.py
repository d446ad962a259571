"""A submission in a process of its own: runs what each answer needs and hands back what it answers,
nothing else.

Started by `grading_process`, in a folder with a copy of the library that knows no answers.  Task:
one JSON line on stdin. Reports: one JSON line an exercise on stdout.  Right and wrong are decided
elsewhere, so nothing that a submission prints or replaces in this process can pass an exercise.
"""

import ast
import json
import os
import sys
import time
from pathlib import Path

from prehab_lib.exercises import answers
from prehab_lib.exercises.coding import decode, encode
from prehab_lib.needed_statements import Statement, needed, parse
from prehab_lib.runs.kernel import die_with

LONGEST = 2**20  # characters of one report
MISSING = "missing"


def main() -> None:
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    task = json.loads(sys.stdin.readline())
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    die_with(task["grader"])
    limit(task["memory_gb"], task["processes"])
    cells = code_cells(Path(task["notebook"]))
    statements, faults = parse(cells)
    shared = run_all(statements)[0] if task["whole"] else None
    for exercise in task["exercises"]:
        started = time.monotonic()
        found = {"id": exercise["id"], **answer(exercise, statements, faults, cells, shared)}
        print(json.dumps(found | {"seconds": time.monotonic() - started}), file=report, flush=True)
    os._exit(0)  # a thread that a submission left behind waits for nobody


def limit(memory_gb: float, processes: int | None) -> None:
    """Memory, number of processes and size of files, as far as the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    size = int(memory_gb * 2**30)
    wanted = {
        "RLIMIT_DATA": size,
        "RLIMIT_FSIZE": 2**26,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": processes,
    }
    for name, value in wanted.items():
        if value is not None and hasattr(resource, name):
            number = getattr(resource, name)
            allowed = resource.getrlimit(number)[1]
            value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
            resource.setrlimit(number, (value, value))


def code_cells(notebook: Path) -> list[str]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell.get("cell_type") == "code"]


def answer(
    exercise: dict, statements: list[Statement], faults: dict, cells: list[str], shared: dict | None
) -> dict:
    """{"answers": encoded or None, "trouble": None or why there are none}."""
    name = exercise["name"]
    wanted = needed(statements, name)
    if not wanted:
        broken = [fault for number, fault in faults.items() if name in cells[number]]
        return {
            "answers": None,
            "trouble": f"its cell is no Python: {broken[0]}" if broken else MISSING,
        }
    try:
        place, failed = (shared, []) if shared is not None else run_all(wanted)
        if name not in place:
            return {
                "answers": None,
                "trouble": f"its cells stopped with {failed[0]}" if failed else MISSING,
            }
        cases = [tuple(decode(case)) for case in exercise["cases"]]
        found = answers.collect(place[name], cases, name)
        text = encode(found.answers, foreign=True)
        too_long = len(json.dumps(text)) > LONGEST
    except BaseException as error:  # also what leaves a process
        return {"answers": None, "trouble": f"stopped with {words(error)}"}
    if too_long:
        return {"answers": None, "trouble": "its answers are too long to be handed over"}
    return {"answers": text, "trouble": found.trouble}


def run_all(statements: list[Statement]) -> tuple[dict, list[str]]:
    """The names that these statements leave, and the errors on the way.  A cell that fails is left
    where it failed.
    """
    place = {
        "__name__": "__main__",
        "__builtins__": __builtins__,
        "display": lambda *things, **options: None,
    }
    failed: dict[int, str] = {}
    for statement in statements:
        if statement.cell not in failed:
            code = compile(ast.Module([statement.code], []), f"<cell {statement.cell + 1}>", "exec")
            try:
                exec(code, place)
            except BaseException as error:
                failed[statement.cell] = words(error)
    return place, list(failed.values())


def words(error: BaseException) -> str:
    """One line, not too long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
