"""A submission in a process of its own: it hands back what its functions answer, and nothing else.

Started by grade.py in a folder with the notebook and a copy of the library that knows no answers. The task is a JSON line
on stdin, the reports are a JSON line an exercise in the file that it names. Right and wrong are decided by grade.py, so
nothing that a submission prints or replaces in this process can pass an exercise.
"""

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The library beside this file comes first, and a checkout with solutions is on nobody's path.
PATH = [str(HERE), *(place for place in sys.path if not Path(place, "pyproject.toml").is_file())]
MAGIC = re.compile(r"\s*([%!?]|[\w.]+\?+\s*$)")
LONGEST = 2**20  # characters of one report
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
LIGHT = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Pass)


def main() -> None:
    """Have the submission answer in a child, and leave no process of it behind, whatever it started and wherever that went."""
    line = sys.stdin.buffer.readline()
    task = json.loads(line)
    sys.path[:] = PATH
    from prehab_lib.runs import unit

    unit.adopt_orphans()
    threading.Thread(target=_die_with, args=[sys.stdin.buffer, unit], daemon=True).start()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    answering = subprocess.Popen([sys.executable, "-I", __file__, "answer"], stdin=subprocess.PIPE, **quiet)
    ended = "it ended by itself"
    try:
        answering.communicate(line, timeout=task["seconds"])
        if answering.returncode < 0:
            ended = f"it was ended by {signal.Signals(-answering.returncode).name}"
    except subprocess.TimeoutExpired:
        ended = task["overtime"]
    finally:
        unit.end_descendants(5)
    Path(task["reports"]).with_name("ended").write_text(ended, encoding="utf-8")
    os._exit(0)


def _die_with(grader, unit) -> None:
    grader.read()  # grade.py holds the other end of this pipe, so this returns when grade.py has ended
    unit.end_descendants(5)
    os._exit(1)


def answer() -> None:
    """Run the notebook and report what its functions answer."""
    task = json.loads(sys.stdin.readline())
    sys.stdin = io.StringIO()  # nobody answers an input()
    sys.path[:] = PATH
    _limit(task["memory_gb"])
    with open(task["reports"], "w", encoding="utf-8") as reports:
        names, faults, skipped = _run(Path(task["notebook"]), task["whole"])
        for exercise in task["exercises"]:
            report = {"id": exercise["id"], **_answer(exercise, names, faults, skipped)}
            print(json.dumps(report), file=reports, flush=True)
    os._exit(0)  # a thread that a submission left behind is not waited for


def _limit(memory_gb: float) -> None:
    """Memory, and the size of files, as far as the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, size in ((resource.RLIMIT_DATA, int(memory_gb * 2**30)), (resource.RLIMIT_FSIZE, 2**26)):
        hard = resource.getrlimit(kind)[1]
        size = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(kind, (size, size))


def _run(notebook: Path, whole: bool) -> tuple[dict, list[str], set[str]]:
    """The names that the notebook's cells give, what stopped a statement or a cell on the way, and names that were not made.

    Where not the whole notebook is wanted, only imports, definitions and assignments that call nothing are run: so the
    minutes that a notebook trains are not spent.
    """
    module = types.ModuleType("__main__")
    module.display = lambda *things, **options: None
    sys.modules["__main__"] = module
    faults, skipped = [], set()
    cells = json.loads(notebook.read_text(encoding="utf-8-sig"))["cells"]
    for source in ("".join(cell["source"]) for cell in cells if cell.get("cell_type") == "code"):
        try:
            statements = _parsed(source).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            faults.append(f"{_words(error)} in the cell that begins {source[:40]!r}")
            continue
        for statement in statements:
            if whole or _is_light(statement):
                try:
                    exec(compile(ast.Module([statement], []), "<cell>", "exec"), module.__dict__)
                except BaseException as error:  # also what leaves a process
                    faults.append(_words(error))
            else:
                made = [node for node in ast.walk(statement) if isinstance(node, (ast.Name, *DEFINES))]
                skipped |= {node.name for node in made if isinstance(node, DEFINES)}
                skipped |= {node.id for node in made if isinstance(getattr(node, "ctx", None), ast.Store)}
    return module.__dict__, faults, skipped


def _parsed(source: str) -> ast.Module:
    """The code of a cell without %magic, !shell and help? lines; a %%magic takes the whole cell."""
    if source.lstrip().startswith("%%"):
        return ast.Module([], [])
    try:
        return ast.parse(source)
    except SyntaxError:
        lines = source.split("\n")  # replaced one by one, so that line numbers stay
        return ast.parse("\n".join(re.sub(r"\S.*", "pass", line) if MAGIC.match(line) else line for line in lines))


def _is_light(statement: ast.AST) -> bool:
    if isinstance(statement, (ast.If, ast.Try, ast.ExceptHandler)):
        return all(_is_light(part) for part in ast.iter_child_nodes(statement))
    if isinstance(statement, (*LIGHT, ast.expr)):
        return not _calls(statement)
    return isinstance(statement, DEFINES)


def _calls(node: ast.AST) -> bool:
    """Whether it calls anything where it stands: what a lambda would call waits."""
    inside = [node.args] if isinstance(node, ast.Lambda) else ast.iter_child_nodes(node)
    return isinstance(node, ast.Call) or any(map(_calls, inside))


def _answer(exercise: dict, names: dict, faults: list[str], skipped: set[str]) -> dict:
    """{"answers": encoded, "trouble": None or why some are missing}."""
    from asked import encode

    from prehab_lib.exercises import answers

    name = exercise["name"]
    try:
        if name in skipped - names.keys():
            return {"answers": [], "trouble": f"{name} is made by a statement that only --whole runs"}
        if name not in names:
            return {"answers": [], "trouble": f"there is no {name}: {faults[-1]}" if faults else "missing"}
        cases = [tuple(answers.decode(case)) for case in exercise["cases"]]
        answered = answers.collect(names[name], cases, name)
        report = {"answers": encode(answered.answers, foreign=True), "trouble": answered.trouble}
        too_long = len(json.dumps(report)) > LONGEST
    except BaseException as error:
        return {"answers": [], "trouble": f"stopped with {_words(error)}"}
    return {"answers": [], "trouble": "its answers are too long to be handed over"} if too_long else report


def _words(error: BaseException) -> str:
    """One line, not too long."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]


if __name__ == "__main__":
    answer() if sys.argv[1:] else main()
