"""One run in a process of its own: `python -m prehab_lib.runs.unit`, started by `launch.py`.

It reads its task as one JSON line from stdin and writes to stdout a JSON line for each cell that
starts and its outcome as the last. What the notebook prints goes to stderr as it comes. The driver
keeps stdin open: when it ends, the driver is dead, and so are soon the kernel, whatever the
notebook started, and this process.
"""

import datetime
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prehab_lib.report.records import write_json
from prehab_lib.runs.kernel import adopt_orphans, end_descendants
from prehab_lib.runs.store import FULL, HOLDER, WORK, Store


def _outlive_nobody() -> None:
    sys.stdin.read()
    end_descendants()
    os._exit(1)


def _manager_class():
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        """Starts our kernel with this interpreter, whatever a kernel specification of the user's
        says.
        """

        def format_kernel_cmd(self, extra_arguments=None):
            command = [sys.executable, "-m", "prehab_lib.runs.kernel", "-f", self.connection_file]
            return [
                *command,
                "--log-level=ERROR",
                *(extra_arguments or []),
            ]  # it warns of local TCP in every log

    return Manager


def _engine(on_cell: Callable[[int, int], None]) -> str:
    """The name of papermill's engine that tells which code cell starts, from 1, and of how many."""
    from papermill.engines import NBClientEngine, papermill_engines

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **options):
            start = nb_man.cell_start
            code = [index for index, cell in enumerate(nb_man.nb.cells) if cell.cell_type == "code"]

            def cell_start(cell, cell_index=None, **more):
                if cell_index in code:
                    on_cell(code.index(cell_index) + 1, len(code))
                start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("prehab", Engine)
    return "prehab"


def _execute(
    notebook: str, output: Path, params: dict, work: Path, on_cell: Callable[[int, int], None]
) -> str | None:
    """Run the notebook; None, or the error in one line. The notebook with what it printed lies in
    `output` then.
    """
    sys.modules["rfc3987_syntax"] = (
        None  # jsonschema would build a grammar for IRIs: half of papermill's import time
    )
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    engine = _engine(on_cell)

    def once():
        executed = papermill.execute_notebook(
            notebook,
            str(output),
            params,
            engine_name=engine,
            kernel_name="python3",
            kernel_manager_class=_manager_class(),
            cwd=str(work),
            progress_bar=False,
            log_output=False,
            stdout_file=sys.stderr,
            stderr_file=sys.stderr,
        )
        executed.metadata.pop("papermill", None)  # it holds the name of the work folder
        nbformat.write(executed, output)

    try:
        try:
            once()
        except RuntimeError as error:
            if isinstance(error, DeadKernelError) or "kernel" not in str(error).lower():
                raise
            once()  # the kernel did not come up: two that start at once may have met on a port
    except papermill.PapermillExecutionError as error:
        return " ".join(f"{error.ename}: {error.evalue}".split())[:600]
    except DeadKernelError:
        return "the kernel died: out of memory, or killed"
    finally:
        end_descendants()
    return None


def _peak_memory_mb() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20)


def _silent(cell: int, cells: int) -> None:
    pass


def work_on(task: dict, on_cell: Callable[[int, int], None] = _silent) -> dict:
    """Do the task unless its result is stored. Returns {"status": "ran" | "cached" | "failed" |
    "full", "error": ...}.
    """
    store, key = Store(Path(task["runs"])), task["key"]
    with store.lock(key):
        if store.done(key).exists():
            return {"status": "cached", "error": None}
        try:
            return _fresh(store, key, task, on_cell)
        except OSError as error:
            if error.errno not in FULL:
                raise
            shutil.rmtree(store.part(key), ignore_errors=True)
            return {"status": "full", "error": None}


def _fresh(store: Store, key: str, task: dict, on_cell: Callable[[int, int], None]) -> dict:
    part = store.begin(key)
    work = part / WORK
    work.mkdir()
    write_json(work / HOLDER, {"process": task["pool"], "host": socket.gethostname()})
    # Nobody's IPython start-up files, history or connection files take part in a run.
    os.environ.update(
        PREHAB_RUN_DIR=str(part),
        IPYTHONDIR=str(work / "ipython"),
        JUPYTER_RUNTIME_DIR=str(work / "jupyter"),
    )
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    error = _execute(
        task["notebook"], part / f"{task['name']}.ipynb", task["params"], work, on_cell
    )
    shutil.rmtree(work, ignore_errors=True)
    if error and ("[Errno 28]" in error or shutil.disk_usage(part).free < 2**20):
        shutil.rmtree(part, ignore_errors=True)
        return {"status": "full", "error": error}
    facts = {
        "key": key,
        "notebook": task["name"],
        "profile": task["profile"],
        "params": task["params"],
        "error": error,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "threads": task["threads"],
        "gpu": task["gpu"],
        "files": sorted(
            file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file()
        ),
    }
    write_json(part / "run.json", facts)
    store.finish(key, good=error is None)
    return {
        "status": "failed" if error else "ran",
        **{name: facts[name] for name in ("error", "seconds", "peak_memory_mb")},
    }


def main() -> None:
    report = os.fdopen(os.dup(1), "w")
    os.dup2(
        2, 1
    )  # whatever libraries and the kernel print goes to stderr, what the driver reads alone to stdout
    task = json.loads(sys.stdin.readline() or "null")
    if task is None:
        sys.exit(1)
    adopt_orphans()
    threading.Thread(target=_outlive_nobody, daemon=True).start()

    def on_cell(cell: int, cells: int) -> None:
        print(json.dumps({"cell": cell, "cells": cells}), file=report, flush=True)
        print(
            f"{datetime.datetime.now():%H:%M:%S} cell {cell} of {cells}",
            file=sys.stderr,
            flush=True,
        )

    outcome = work_on(task, on_cell)
    print(json.dumps(outcome), file=report, flush=True)
    os._exit(0)  # the reading thread is still waiting on stdin


if __name__ == "__main__":
    main()
