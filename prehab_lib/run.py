"""The pool: runs of a plan, some at a time, each in a process of its own. `python -m prehab_lib run PROFILE`.

A failing notebook stops only what needs it. Killed at any moment, the same command resumes with what is missing, for a
run is stored whole or not at all (`store.py`) and its processes die with this one (`unit.py`).
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from prehab_lib import keys, plan
from prehab_lib.store import Store, no_space

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
SHOWN = 10  # runs of a grid named before it starts
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: those this process may see. Asked of the driver, not of torch (four seconds)."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name.strip() and name.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def wants_gpu(params: dict) -> bool:
    """A run asks for a GPU by its parameter `device`: "cuda", or "auto"."""
    return str(params.get("device", "cpu")).startswith(("cuda", "auto"))


@dataclass
class Outcome:
    """What became of a run: "ran", "cached", "failed" or "skipped"."""

    status: str
    key: str = ""
    error: str = ""
    seconds: float = 0.0
    peak_memory_mb: int = 0


@dataclass
class Active:
    """A run at work."""

    run: plan.Run
    key: str
    gpu: str | None
    process: subprocess.Popen
    out: object
    err: object
    started: float = field(default_factory=time.monotonic)

    def outcome(self) -> Outcome:
        self.out.seek(0)
        self.err.seek(0)
        said, complaint = self.out.read().decode(), self.err.read().decode(errors="replace").strip()
        if not said.strip():
            last = complaint.splitlines()[-1] if complaint else f"its process ended with code {self.process.returncode}"
            return Outcome("failed", self.key, last, time.monotonic() - self.started)
        return Outcome(key=self.key, **{name: value or "" for name, value in json.loads(said).items()})


class Pool:
    """Runs of a plan over one store, `width` at a time."""

    def __init__(self, store: Store, runs: list[plan.Run], width: int, say):
        self.store, self.say = store, say
        self.waiting = list(runs)
        self.before_last = [run.name for run in runs if not run.last]
        self.width = max(1, min(width, len(runs)))
        self.threads = max(1, cores() // self.width)
        self.gpus = gpus() if any(wants_gpu(run.params) for run in runs) else []
        self.free = list(self.gpus)
        self.active: list[Active] = []
        self.outcomes: dict[str, Outcome] = {}
        self.absent: set[str] = set()  # runs whose result was looked for and is not stored
        self.files = ExitStack()

    def work(self) -> dict[str, Outcome]:
        """Run everything. Raises OSError where the disk is full; processes at work are killed then, as on Ctrl-C."""
        try:
            while self.waiting or self.active:
                for run in list(self.waiting):
                    self._consider(run)
                for active in [active for active in self.active if active.process.poll() is not None]:
                    self._collect(active)
                time.sleep(0.05 if self.active else 0)
        finally:
            for active in self.active:
                active.process.kill()
                active.process.wait()
            self.files.close()
        return self.outcomes

    def _consider(self, run: plan.Run) -> None:
        """Skip it, find it stored, start it, or leave it waiting."""
        if run.last and not all(name in self.outcomes for name in self.before_last):
            return
        upstream = {name: self.outcomes.get(name) for name in run.needs}
        missing = [name for name, outcome in upstream.items() if outcome and outcome.status in ("failed", "skipped")]
        if missing:
            self.waiting.remove(run)
            self._settle(run, Outcome("skipped", error=f"it needs {missing[0]}"))
        elif all(upstream.values()) and (run.name not in self.absent or self._room(run)):
            read = {name: self._result(outcome.key) for name, outcome in upstream.items()}
            key = keys.key(run, read | (self.store.results(run.profile, run.name) if run.last else {}))
            if self.store.done(key).exists():
                self.waiting.remove(run)
                self._settle(run, Outcome("cached", key))
            elif self._room(run):
                self.waiting.remove(run)
                self._start(run, key)
            else:
                self.absent.add(run.name)  # asking again costs a key; it is made anew when there is room

    def _room(self, run: plan.Run) -> bool:
        return len(self.active) < self.width and bool(self.free or not self.gpus or not wants_gpu(run.params))

    def _result(self, key: str) -> bytes:
        file = self.store.done(key) / "result.json"
        return file.read_bytes() if file.is_file() else key.encode()

    def _start(self, run: plan.Run, key: str) -> None:
        gpu = self.free.pop(0) if self.free and wants_gpu(run.params) else None
        environment = os.environ | QUIET | dict.fromkeys(THREADS, str(self.threads))
        environment |= {
            "PREHAB_PROFILE": run.profile,
            "PREHAB_NOTEBOOK": run.notebook.stem,
            "PREHAB_NOTEBOOK_DIR": str(run.notebook.parent),
            "PREHAB_RUNS": str(self.store.runs / run.profile),
            "PREHAB_NEEDS": json.dumps(run.needs),  # folders there, read by upstream.py
        }
        if data := os.environ.get("PREHAB_DATA"):
            environment["PREHAB_DATA"] = os.path.abspath(os.path.expanduser(data))
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        task = {
            "pool": os.getpid(),
            "runs": str(self.store.runs),
            "key": key,
            "name": run.notebook.stem,
            "profile": run.profile,
            "notebook": str(run.notebook),
            "params": run.params,
            "threads": self.threads,
            "gpu": gpu,
        }
        out = self.files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (closed with the pool)
        err = self.files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        # A session of its own: Ctrl-C reaches the pool alone, which then ends its processes.
        process = subprocess.Popen(
            [sys.executable, "-m", "prehab_lib.unit"],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.flush()
        self.active.append(Active(run, key, gpu, process, out, err))
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        self.say(f"started   {run.name} ({threads}{', GPU ' + gpu if gpu else ''})")

    def _collect(self, active: Active) -> None:
        self.active.remove(active)
        active.process.stdin.close()
        if active.gpu is not None:
            self.free.append(active.gpu)
        outcome = active.outcome()
        if outcome.status == "full":
            raise no_space(self.store.runs)
        self._settle(active.run, outcome)

    def _settle(self, run: plan.Run, outcome: Outcome) -> None:
        self.outcomes[run.name] = outcome
        if outcome.status in ("ran", "cached"):
            self.store.publish(outcome.key, run.profile, run.name)
        what = {
            "ran": f"finished  {run.name} in {outcome.seconds:.0f} s, {outcome.peak_memory_mb} MB",
            "cached": f"stored    {run.name}",
            "failed": f"failed    {run.name} after {outcome.seconds:.0f} s: {outcome.error}",
            "skipped": f"skipped   {run.name}: {outcome.error}",
        }
        self.say(what[outcome.status], done=True)


def summary(store: Store, profile: str, outcomes: dict[str, Outcome], seconds: float) -> list[str]:
    """Closing lines: what ran, what was stored, what failed and where its notebook lies."""
    by = {
        status: [name for name in outcomes if outcomes[name].status == status]
        for status in ("ran", "cached", "failed", "skipped")
    }
    if len(by["cached"]) == len(outcomes):
        return [f"already up to date: {len(outcomes)} of {len(outcomes)} runs are stored"]
    counts = ", ".join(f"{len(names)} {status}" for status, names in by.items())
    lines = [f"{profile}: {counts} in {seconds:.0f} s"]
    lines += [f"  {status}: {', '.join(by[status])}" for status in ("ran", "cached") if by[status]]
    for name in by["failed"]:
        kept = next(store.failed(outcomes[name].key).glob("*.ipynb"), None)
        where = f" (see {os.path.relpath(kept)})" if kept else ""
        lines.append(f"  failed: {name}: {outcomes[name].error}{where}")
    lines += [f"  skipped: {name}: {outcomes[name].error}" for name in by["skipped"]]
    return lines


def notes(store: Store, home: Path, profile: str, planned: list[plan.Run]) -> list[str]:
    """What a reader should know before the first run starts: missing params files, grids, runs the report leaves out."""
    lines = [run.note for run in planned if run.note and not store.published(profile, run.name)]
    for notebook in dict.fromkeys(run.notebook for run in planned if run.suffix):
        made = [run.suffix for run in planned if run.notebook == notebook]
        told = ", ".join(made[:SHOWN]) + (f" and {len(made) - SHOWN} more" if len(made) > SHOWN else "")
        lines.append(f"{notebook.stem} makes {len(made)} run{'s' * (len(made) > 1)}: {told}")
    known = plan.expected(home, profile, {run.notebook.stem for run in planned})
    outside = {run.name for run in planned if run.name not in known[run.notebook.stem]}
    for name in sorted({*store.outside(profile, known), *outside}):
        lines.append(f"{name} is no run of the profile as its params file stands: the report leaves it out")
    return lines


def main(
    profile: str, wanted: list[str] = (), overrides: dict | None = None, width: int = 2, home: Path | None = None
) -> int:
    """Run a profile. Returns 0, or 1 where a run failed. Errors of the user's are raised before anything is written."""
    from tqdm import tqdm

    home = home or plan.home()
    planned = plan.runs(home, profile, list(wanted), overrides or {})
    store, clock = Store(home / "runs"), time.monotonic()
    store.sweep()
    with tqdm(total=len(planned), disable=not sys.stdout.isatty(), file=sys.stdout, unit="run", leave=False) as bar:

        def say(line: str, done: bool = False) -> None:
            if not line.startswith("stored"):
                bar.write(line, file=sys.stdout)
                sys.stdout.flush()
            bar.update(done)

        for line in notes(store, home, profile, planned):
            say(f"note      {line}")
        outcomes = Pool(store, planned, width, say).work()
    print("\n".join(summary(store, profile, outcomes, time.monotonic() - clock)), flush=True)
    return int(any(outcome.status in ("failed", "skipped") for outcome in outcomes.values()))
