"""One run of a plan as a process: its key, its environment, its start and its outcome. Shared by
every driver.

The pool (`run.py`), the driver of a single run (`single.py`) and through it Snakemake go this way,
so that a run is the same whoever starts it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prehab_lib.runs import keys
from prehab_lib.runs.plan import Run
from prehab_lib.runs.store import Store

QUIET = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
GRACE = 2.0  # seconds for a process to end what it started
TAIL = 65536  # bytes read of what a process said
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass
class Outcome:
    """What became of a run: "ran", "cached", "failed", "skipped", or "full" where the disk had no
    more room.
    """

    status: str
    key: str = ""
    error: str = ""
    seconds: float = 0.0
    peak_memory_mb: int = 0


def _result(store: Store, key: str) -> bytes:
    file = store.done(key) / "result.json"
    return file.read_bytes() if file.is_file() else key.encode()


def key_of(store: Store, run: Run, needs: Mapping[str, str]) -> str:
    """The key under which a run is stored. needs: name -> key of every run in `run.needs`, each of
    them stored.

    A run that is `last` reads whatever runs/PROFILE holds now, which enters its key too.
    """
    read = {name: _result(store, key) for name, key in needs.items()}
    return keys.key(run, read | (store.results(run.profile, run.name) if run.last else {}))


def stored(store: Store, planned: Sequence[Run]) -> dict[str, str]:
    """Name -> key of the runs of a plan that are stored; nothing is started. Those that are `last`
    only where all others are.
    """
    found: dict[str, str] = {}
    rest = [run.name for run in planned if not run.last]
    for run in sorted(planned, key=lambda run: run.last):
        if all(name in found for name in (*run.needs, *(rest if run.last else ()))):
            key = key_of(store, run, {name: found[name] for name in run.needs})
            if store.done(key).exists():
                found[run.name] = key
    return found


def environment(store: Store, run: Run, threads: int, gpu: str | None) -> dict[str, str]:
    """The environment of a run's process: this one's, with what notebook and libraries are told.

    gpu: a name for CUDA_VISIBLE_DEVICES; None leaves that variable as it is.
    """
    told = os.environ | QUIET | dict.fromkeys(THREADS, str(threads))
    told |= {
        "PREHAB_PROFILE": run.profile,
        "PREHAB_NOTEBOOK": run.notebook.stem,
        "PREHAB_NOTEBOOK_DIR": str(run.notebook.parent),
        "PREHAB_RUNS": str(store.runs / run.profile),
        "PREHAB_NEEDS": json.dumps(run.needs),  # folders there, read by upstream.py
    }
    if data := os.environ.get("PREHAB_DATA"):
        told["PREHAB_DATA"] = os.path.abspath(os.path.expanduser(data))
    if gpu is not None:
        told["CUDA_VISIBLE_DEVICES"] = gpu
    return told


def start(
    store: Store, run: Run, key: str, threads: int, gpu: str | None, out, err
) -> subprocess.Popen:
    """Start `unit.py` on a run. It and all it starts die soon after this process.

    out, err: binary files, open for reading too; out gets a line of JSON for each cell that starts
    and the outcome as the last one, err whatever the notebook and its libraries print. The process
    has a session of its own: Ctrl-C reaches its driver alone. Its stdin stays open as long as it
    may live: `end` stops it. Once it has ended, `outcome` says what became of the run; publish it
    then.
    """
    task = {
        "pool": os.getpid(),
        "runs": str(store.runs),
        "key": key,
        "name": run.notebook.stem,
        "profile": run.profile,
        "notebook": str(run.notebook),
        "params": run.params,
        "threads": threads,
        "gpu": gpu,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prehab_lib.runs.unit"],
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=err,
        env=environment(store, run, threads, gpu),
        start_new_session=True,
    )
    process.stdin.write(json.dumps(task).encode() + b"\n")
    process.stdin.flush()
    return process


def end(process: subprocess.Popen) -> None:
    """Stop a run's process, its kernel and whatever the notebook started. Does nothing where it has
    ended.
    """
    process.stdin.close()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cell(out) -> tuple[int, int] | None:
    """The cell that a process at work has reached, from 1, and how many there are; None where it
    has not said.
    """
    lines = (
        _lines(out) if hasattr(os, "pread") else []
    )  # to seek would move where the process writes
    told = json.loads(lines[-1]) if lines and lines[-1].endswith("}") else {}
    return (told["cell"], told["cells"]) if "cell" in told else None


def outcome(process: subprocess.Popen, key: str, out, err) -> Outcome:
    """What a process that has ended said. out, err: the files given to `start`."""
    said, complaint = _lines(out), _lines(err)
    last = json.loads(said[-1]) if said and said[-1].endswith("}") else {}
    if "status" in last:
        return Outcome(key=key, **{name: value or "" for name, value in last.items()})
    if process.returncode < 0:  # what it printed last is no reason
        return Outcome(
            "failed",
            key,
            f"its process was killed (signal {-process.returncode}): out of memory, or by hand",
        )
    error = complaint[-1] if complaint else f"its process ended with code {process.returncode}"
    return Outcome("full" if "[Errno 28]" in error else "failed", key, error)


def _lines(file) -> list[str]:
    """The last lines of a file that another process may be writing to."""
    size = os.fstat(file.fileno()).st_size
    if hasattr(os, "pread"):
        content = os.pread(file.fileno(), TAIL, max(0, size - TAIL))
    else:
        file.seek(max(0, size - TAIL))
        content = file.read()
    return [line for line in content.decode(errors="replace").splitlines() if line.strip()]
