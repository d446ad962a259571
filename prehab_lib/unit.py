"""One run in a process of its own: `python -m prehab_lib.unit`, started by the pool in `run.py`.

It reads its task as one JSON line from stdin and writes its outcome as one JSON line to stdout. The pool keeps stdin
open: when it ends, the pool is dead, and so is this process and its kernel.
"""

import datetime
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from prehab_lib.kernel import die_with
from prehab_lib.records import write_json
from prehab_lib.store import FULL, Store


def _outlive_nobody() -> None:
    sys.stdin.read()
    os._exit(1)


def _manager_class():
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        """Starts our kernel with this interpreter, whatever a kernel specification of the user's says."""

        def format_kernel_cmd(self, extra_arguments=None):
            return [sys.executable, "-m", "prehab_lib.kernel", "-f", self.connection_file, *(extra_arguments or [])]

    return Manager


def _execute(notebook: str, output: Path, params: dict, work: Path) -> str | None:
    """Run the notebook; None, or the error in one line. The notebook with what it printed lies in `output` then."""
    sys.modules["rfc3987_syntax"] = None  # jsonschema would build a grammar for IRIs: half of papermill's import time
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    def once():
        executed = papermill.execute_notebook(
            notebook,
            str(output),
            params,
            kernel_name="python3",
            kernel_manager_class=_manager_class(),
            cwd=str(work),
            progress_bar=False,
            log_output=False,
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
    return None


def _peak_memory_mb() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**20)


def work_on(task: dict) -> dict:
    """Do the task unless its result is stored. Returns {"status": "ran" | "cached" | "failed" | "full", "error": ...}."""
    store, key = Store(Path(task["runs"])), task["key"]
    with store.lock(key):
        if store.done(key).exists():
            return {"status": "cached", "error": None}
        try:
            return _fresh(store, key, task)
        except OSError as error:
            if error.errno not in FULL:
                raise
            shutil.rmtree(store.part(key), ignore_errors=True)
            return {"status": "full", "error": None}


def _fresh(store: Store, key: str, task: dict) -> dict:
    part = store.begin(key)
    work = part / "work"
    work.mkdir()
    # Nobody's IPython start-up files, history or connection files take part in a run.
    os.environ.update(
        PREHAB_RUN_DIR=str(part), IPYTHONDIR=str(work / "ipython"), JUPYTER_RUNTIME_DIR=str(work / "jupyter")
    )
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    error = _execute(task["notebook"], part / f"{task['name']}.ipynb", task["params"], work)
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
        "files": sorted(file.relative_to(part).as_posix() for file in part.rglob("*") if file.is_file()),
    }
    write_json(part / "run.json", facts)
    store.finish(key, good=error is None)
    return {
        "status": "failed" if error else "ran",
        **{name: facts[name] for name in ("error", "seconds", "peak_memory_mb")},
    }


def main() -> None:
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries and the kernel print goes to stderr, the outcome alone to stdout
    task = json.loads(sys.stdin.readline() or "null")
    if task is None:
        sys.exit(1)
    die_with(task["pool"])
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    outcome = work_on(task)
    print(json.dumps(outcome), file=report, flush=True)
    os._exit(0)  # the reading thread is still waiting on stdin


if __name__ == "__main__":
    main()
