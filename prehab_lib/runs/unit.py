"""One run in a process of its own: `python -m prehab_lib.runs.unit`, started by `pool.py`.

It reads its task as one JSON line from stdin and leaves its result in the store: KEY or KEY.failed.
What the notebook and its libraries print goes to stdout and stderr as it comes. The driver keeps
stdin open: when it ends, the driver is dead, and so are soon the kernel, whatever the notebook
started, and this process.
"""

import datetime
import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
from pathlib import Path

from prehab_lib.runs.certificate import peak_memory_mb, write_json
from prehab_lib.runs.kernel import adopt_orphans, end_descendants
from prehab_lib.runs.store import FULL, Busy, Store

WORK = "work"  # in a work folder: what goes before it is renamed


def _outlive_nobody() -> None:
    while os.read(0, 4096):
        pass
    end_descendants()
    os._exit(1)


def _manager_class():
    from jupyter_client.manager import AsyncKernelManager

    class Manager(AsyncKernelManager):
        """Starts our kernel with this interpreter, whatever a kernel specification says."""

        def format_kernel_cmd(self, extra_arguments=None):
            command = [sys.executable, "-m", "prehab_lib.runs.kernel", "-f", self.connection_file]
            # At its own level it warns of local TCP in every log.
            return [*command, "--log-level=ERROR", *(extra_arguments or [])]

    return Manager


def _execute(notebook: Path, output: Path, params: dict, work: Path) -> str | None:
    """Run the notebook into `output`; None, or the error in one line."""
    # jsonschema would build a grammar for IRIs: half of papermill's import time.
    sys.modules["rfc3987_syntax"] = None
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    def execute():
        executed = papermill.execute_notebook(
            str(notebook),
            str(output),
            params,
            kernel_name="python3",
            kernel_manager_class=_manager_class(),
            cwd=str(work),
            progress_bar=False,
            log_output=True,
        )
        executed.metadata.pop("papermill", None)  # it holds the name of the work folder
        nbformat.write(executed, output)

    try:
        try:
            execute()
        except RuntimeError as error:
            if isinstance(error, DeadKernelError) or "kernel" not in str(error).lower():
                raise
            execute()  # it did not come up: two kernels that start at once may have met on a port
    except papermill.PapermillExecutionError as error:
        return " ".join(f"{error.ename}: {error.evalue}".split())[:600]
    except DeadKernelError:
        return "the kernel died: out of memory, or killed"
    finally:
        end_descendants()
    return None


def work_on(task: dict) -> None:
    """Do the task unless its result is stored.

    Raises Busy while another process is at work on it, OSError where the disk is full.
    """
    store, key = Store(Path(task["runs"])), task["key"]
    with store.hold_run(key):
        if store.done(key).exists():
            return
        try:
            _work(store, key, task)
        except OSError:
            shutil.rmtree(store.part(key), ignore_errors=True)
            raise


def _work(store: Store, key: str, task: dict) -> None:
    part = store.begin(key)
    work = part / WORK
    work.mkdir()
    # Nobody's IPython start-up files, history or connection files take part in a run.
    os.environ.update(
        PREHAB_RUN_DIR=str(part),
        IPYTHONDIR=str(work / "ipython"),
        JUPYTER_RUNTIME_DIR=str(work / "jupyter"),
    )
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    notebook = Path(task["notebook"])
    error = _execute(notebook, part / notebook.name, task["params"], work)
    shutil.rmtree(work, ignore_errors=True)
    if error and ("[Errno 28]" in error or shutil.disk_usage(part).free < 2**20):
        raise OSError(errno.ENOSPC, error)
    inside = [file.relative_to(part) for file in part.rglob("*") if file.is_file()]
    facts = {name: task[name] for name in ("key", "profile", "params", "threads", "gpu")}
    facts["notebook"], facts["error"] = notebook.stem, error
    facts["started"] = started.isoformat(timespec="seconds")
    facts["seconds"] = round(time.monotonic() - clock, 1)
    facts["peak_memory_mb"] = peak_memory_mb(children=True)
    facts["files"] = sorted(file.as_posix() for file in inside)
    write_json(part / "run.json", facts)
    store.finish(key, good=error is None)


def main() -> int:
    """Exit code: 0 where the store has what became of the run, ENOSPC where the disk is full."""
    task = json.loads(sys.stdin.readline() or "null")
    if task is None:
        return 1
    adopt_orphans()
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        work_on(task)
    except Busy as error:
        print(error, flush=True)
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        return errno.ENOSPC
    return 0


if __name__ == "__main__":
    sys.exit(main())
