"""One run in a process of its own: `python -m prehab_lib.runs.unit`, started by `pool.py`.

It reads its task as one JSON line from stdin and leaves its result in the store: KEY or KEY.failed.
The driver keeps stdin open: when it ends, the driver is dead, and so are soon the kernel, whatever
the notebook started, and this process. With `-f CONNECTION_FILE` it is that kernel.
"""

import ctypes
import datetime
import errno
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from prehab_lib.runs.certificate import peak_memory_mb, write_json
from prehab_lib.runs.inputs import digest
from prehab_lib.runs.store import FULL, Busy, Store

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PRINTING = 600  # seconds that what a cell has printed may take to arrive after its end
_abandoned = threading.Event()  # the driver is dead


def die_with(parent: int) -> None:
    """Have the system kill this process when `parent`, its parent process, dies. Linux only."""
    if sys.platform == "linux":  # elsewhere ipykernel polls its parent, a unit its driver's pipe
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            raise ValueError(f"process {parent} is not the parent of this one, or it has ended")


def adopt_orphans() -> None:
    """Have orphans below this process become its children, which `end_descendants` finds. Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def end_descendants(seconds: float = 1.5) -> None:
    """Kill all that this process started, directly or not: also what a notebook left running."""
    until, own = time.monotonic() + seconds, psutil.Process()
    while time.monotonic() < until:
        children = own.children(recursive=True)  # also those they started meanwhile
        if not children:
            return
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=0.2)


def _outlive_nobody() -> None:
    while os.read(0, 4096):
        pass
    _abandoned.set()
    end_descendants()
    os._exit(1)


def _execute(notebook: Path, output: Path, params: dict, work: Path) -> str | None:
    """Run the notebook into `output`; None, or the error in one line."""
    # jsonschema would build a grammar for IRIs: half of papermill's import time.
    sys.modules["rfc3987_syntax"] = None
    import nbformat
    import papermill
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    class Manager(AsyncKernelManager):
        """Starts our kernel with this interpreter, whatever a kernel specification says."""

        def format_kernel_cmd(self, extra_arguments=None):
            # -P: the work folder is no place for modules. At its own level it warns of local TCP.
            command = [sys.executable, "-P", "-m", "prehab_lib.runs.unit"]
            return [*command, "-f", self.connection_file, "--log-level=ERROR"]

    settings = {"kernel_name": "python3", "kernel_manager_class": Manager, "cwd": work}
    settings |= {"progress_bar": False, "log_output": True, "language": "python"}
    settings["iopub_timeout"] = PRINTING
    execute = partial(papermill.execute_notebook, notebook, output, params, **settings)
    try:
        try:
            executed = execute()
        except RuntimeError as error:
            if isinstance(error, DeadKernelError) or "kernel" not in str(error).lower():
                raise
            # It did not come up: two kernels that start at once may have met on a port.
            executed = execute()
        executed.metadata.pop("papermill", None)  # it holds the name of the work folder
        nbformat.write(executed, output)
        for number, cell in enumerate(executed.cells, 1):  # papermill takes it for a good end
            if any(one.get("ename") == "SystemExit" for one in cell.get("outputs", [])):
                return f"SystemExit in cell {number}: what comes after it did not run"
    except CellTimeoutError:
        return f"what a cell printed did not arrive within {PRINTING} s: print less"
    except papermill.PapermillExecutionError as error:
        return " ".join(f"{error.ename}: {error.evalue}".split())[:600]
    except DeadKernelError:
        return "the kernel died: out of memory, or killed"
    finally:
        end_descendants()
    return None


def work_on(task: dict) -> None:
    """Do the task unless its result is stored. Raises Busy, or OSError where the disk is full."""
    store, key = Store(Path(task["runs"])), task["key"]
    with store.hold_run(key):
        if store.stored(key):
            return
        part = store.begin(key)
        os.environ["PREHAB_STAGES"] = str(store.stages(key))
        try:
            good = _work(part, task)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if _abandoned.is_set():  # the kernel was killed by us: no failure
            os._exit(1)
        store.finish(key, good)


def _work(part: Path, task: dict) -> bool:
    """Fill the work folder. Returns whether the notebook came to its end."""
    work = part / "work"  # gone before the folder is renamed
    work.mkdir()
    os.environ["PREHAB_RUN_DIR"] = str(part)
    # Nobody's IPython start-up files, history or connection files take part in a run.
    os.environ["IPYTHONDIR"] = str(work / "ipython")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(work / "jupyter")
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    clock = time.monotonic()
    notebook = Path(task["notebook"])
    error = _execute(notebook, part / notebook.name, task["params"], work)
    free = shutil.disk_usage(part).free  # a notebook can also fill a disk of its own
    shutil.rmtree(work, ignore_errors=True)
    if error and free < 2**20:
        raise OSError(errno.ENOSPC, error)
    files = {file.relative_to(part).as_posix(): file for file in part.rglob("*") if file.is_file()}
    odd = [name for name in files if re.search("[\ud800-\udfff]", name)]  # no text
    for name in odd:
        del files[name]
        error = error or f"it wrote a file called {name!a}: give it a plain name"
    facts = {name: task[name] for name in ("key", "profile", "params", "threads", "gpu", "last")}
    facts |= {"notebook": notebook.stem, "error": error, "started": started}
    facts |= {"seconds": round(time.monotonic() - clock, 1), "files": sorted(files)}
    facts["sha256"] = {name: digest(file) for name, file in sorted(files.items())}
    facts["peak_memory_mb"] = peak_memory_mb(children=True)
    write_json(part / "run.json", facts)
    return error is None


def main() -> None:
    """Exit code: 0 where the store has what became of the run, ENOSPC where the disk is full."""
    task = json.loads(sys.stdin.readline())
    adopt_orphans()
    if sys.platform == "linux":  # stopped, it would not notice that its driver has died
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        work_on(task)
    except Busy as error:
        sys.exit(str(error))
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(errno.ENOSPC)


if __name__ == "__main__":
    if "-f" in sys.argv:  # a kernel, which dies with the process that started it
        from ipykernel.kernelapp import launch_new_instance

        die_with(int(os.environ["JPY_PARENT_PID"]))
        launch_new_instance()
    else:
        main()
        sys.stdout.flush()
        os._exit(0)  # what the kernel's client left in this process must not end it otherwise
