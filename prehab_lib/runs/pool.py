"""The pool: runs of a profile on this machine, a thread each that waits for the run's process.

Every driver goes through `Pool.work`, so that a run is the same whoever starts it.
"""

import errno
import json
import os
import queue
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass

from prehab_lib.progress import say
from prehab_lib.runs import keys
from prehab_lib.runs.plan import Run
from prehab_lib.runs.store import Busy, Store

BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
OFF = (*BARS, "HF_HUB_DISABLE_TELEMETRY", "PYDEVD_DISABLE_FILE_VALIDATION")
QUIET = dict.fromkeys(OFF, "1") | {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
QUIET["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
QUIET["TRANSFORMERS_VERBOSITY"] = "error"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
COUNTED = ("seconds", "peak_memory_mb")


@dataclass
class Outcome:
    """What became of a run: "ran", "cached" (it was stored), or "failed" with the error."""

    status: str
    key: str
    error: str = ""
    seconds: float = 0.0
    peak_memory_mb: int = 0


def key_of(store: Store, run: Run) -> str:
    """The key of a run as everything stands; one that is `last` reads the profile's results too."""
    results = store.results(run.profile) if run.last else {}
    return keys.key(run, results, contents=store.contents)


def found(store: Store, key: str) -> Outcome | None:
    """What the store says of a run: it "ran", it "failed" (see which notebook), or nothing."""
    for status, folder in (("ran", store.done(key)), ("failed", store.failed(key))):
        if facts := store.facts(folder):
            kept = os.path.relpath(folder / f"{facts['notebook']}.ipynb")
            error = f"{facts['error']} (see {kept})" if facts.get("error") else ""
            return Outcome(status, key, error, *(facts.get(name, 0) for name in COUNTED))
    return None


def environment(store: Store, run: Run, gpu: str | None) -> dict[str, str]:
    """The environment of a run's process: this one's, with what notebook and libraries are told."""
    variables = os.environ | QUIET | dict.fromkeys(THREADS, str(run.threads))
    variables |= {"PREHAB_PROFILE": run.profile, "PREHAB_NOTEBOOK": run.notebook.stem}
    variables["PREHAB_NOTEBOOK_DIR"] = str(run.notebook.parent)
    variables["PREHAB_RUNS"] = str(store.runs / run.profile)
    if "PREHAB_DATA" in os.environ:  # the notebook works in another folder
        variables["PREHAB_DATA"] = os.path.abspath(os.path.expanduser(os.environ["PREHAB_DATA"]))
    if gpu is not None:
        variables["CUDA_VISIBLE_DEVICES"] = gpu
    return variables


def end_strays(folder: str) -> None:
    """Kill what the notebook at work in this folder had started. Its own process was killed."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREHAB_RUN_DIR") == folder:
                process.kill()


class Pool:
    """Runs over one store, `width` at a time, those with a GPU each on one of `gpus`, if given."""

    def __init__(self, store: Store, width: int = 1, gpus: Sequence[str] = ()):
        self.store, self.width = store, width
        self.gpus: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for gpu in gpus or [None] * width:  # None: whichever the process sees
            self.gpus.put(gpu)
        self.active: list[subprocess.Popen] = []
        self.stopped = False

    def work(self, planned: Sequence[Run]) -> dict[str, Outcome]:
        """Do all runs, those that are `last` after the others; a run that fails stops no other.

        Raises OSError where the disk is full; processes at work are ended then, as on Ctrl-C.
        """
        outcomes: dict[str, Outcome] = {}
        for last in (False, True):
            with ThreadPoolExecutor(self.width) as threads:
                chosen = [run for run in planned if run.last == last]
                pending = {threads.submit(self._settle, run): run.name for run in chosen}
                try:
                    for future in as_completed(pending):
                        outcomes[pending[future]] = future.result()
                except BaseException:
                    self.stopped = True
                    for process in list(self.active):
                        process.stdin.close()
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
        return {run.name: outcomes[run.name] for run in planned}

    def _settle(self, run: Run) -> Outcome:
        """Find a run stored, or execute it; publish it, and say what became of it."""
        key = key_of(self.store, run)
        outcome = Outcome("cached", key)
        if not self.store.stored(key):
            gpu = self.gpus.get() if run.gpu else None
            try:
                outcome = self._execute(run, key, gpu)
            finally:
                if run.gpu:
                    self.gpus.put(gpu)
        seconds = f"{outcome.seconds:.0f} s"
        if outcome.status != "failed":
            self.store.publish(key, run.profile, run.name)
        if outcome.status == "failed" and not self.stopped:
            say(f"failed    {run.name} after {seconds}: {outcome.error}")
        if outcome.status == "ran":
            say(f"finished  {run.name} in {seconds}, {outcome.peak_memory_mb} MB")
        return outcome

    def _execute(self, run: Run, key: str, gpu: str | None) -> Outcome:
        """Have `unit.py` do a run, in a process that dies soon after this one, and wait for it."""
        try:
            with self.store.hold_run(key):
                pass
        except Busy as busy:
            return Outcome("failed", key, str(busy))
        clock = time.monotonic()
        log = self.store.runs / run.profile / "logs" / f"{run.name}.log"  # all that is printed
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "prehab_lib.runs.unit"]
        options = {"env": environment(self.store, run, gpu)}
        options["stdin"] = subprocess.PIPE  # open as long as the process may live
        options["start_new_session"] = True  # Ctrl-C reaches this process alone
        with log.open("wb") as printed:
            process = subprocess.Popen(command, stdout=printed, stderr=printed, **options)
        self.active.append(process)
        plural, where = "s" * (run.threads > 1), f", GPU {gpu}" if gpu else ""
        say(f"started   {run.name} ({run.threads} thread{plural}{where})")
        task = vars(run) | {"runs": self.store.runs, "key": key, "gpu": gpu}
        with suppress(BrokenPipeError):  # it ended before it read: its log says why
            process.stdin.write(json.dumps(task, default=str).encode() + b"\n")
            process.stdin.flush()
        if self.stopped:  # while it was started
            process.stdin.close()
        code = process.wait()
        process.stdin.close()
        self.active.remove(process)
        if code == errno.ENOSPC:
            raise OSError(code, os.strerror(code), str(self.store.runs))
        if code == 0:
            return found(self.store, key) or Outcome("failed", key, "its result cannot be read")
        words = log.read_text(encoding="utf-8", errors="replace").strip()
        lines = words.splitlines() or [f"its process ended with code {code}"]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        reason = [*lines, *named][-1]
        if code < 0:  # what it printed last is no reason
            end_strays(str(self.store.part(key)))
            reason = f"its process was killed (signal {-code}): out of memory, or by hand"
        error = f"{reason} (log: {os.path.relpath(log)})"
        return Outcome("failed", key, error, time.monotonic() - clock)
