"""The pool: runs of a plan on this machine, as many at a time as there is room for, each in a
process of its own.

A run that another driver works on is waited for and then found stored; where that driver dies, this
one takes it over.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prehab_lib.runs import launch
from prehab_lib.runs.launch import Outcome
from prehab_lib.runs.machine import gpus
from prehab_lib.runs.plan import Run
from prehab_lib.runs.slots import Slots
from prehab_lib.runs.store import Store, no_space

LOOK, LOOK_AGAIN = (
    0.05,
    1.0,
)  # seconds between two looks at the processes, and at a run that another driver has


@dataclass
class Active:
    """A run at work."""

    run: Run
    key: str
    process: subprocess.Popen
    out: object
    err: object
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def outcome(self) -> Outcome:
        outcome = launch.outcome(self.process, self.key, self.out, self.err)
        outcome.seconds = outcome.seconds or self.seconds
        return outcome

    def __str__(self) -> str:
        at, seconds = launch.cell(self.out), int(self.seconds)
        cells = f" {at[0]}/{at[1]}" if at else ""
        return f"{self.run.name}{cells} {seconds // 60}:{seconds % 60:02}"


@dataclass
class Held:
    """A run that another driver works on."""

    key: str
    since: float = field(default_factory=time.time)
    look: float = field(default_factory=lambda: time.monotonic() + LOOK_AGAIN)


class Pool:
    """Runs of a plan over one store, `width` at a time where there is room.

    say: called with a line, and done=True where it settles a run. watch: called now and then with
    the runs at work. stored: name -> key of runs found stored just now.
    """

    def __init__(
        self,
        store: Store,
        runs: list[Run],
        width: int,
        say: Callable[..., None],
        watch: Callable[[list[Active]], None] = lambda active: None,
        slots: Slots | None = None,
        stored: dict[str, str] | None = None,
    ):
        self.store, self.say, self.watch = store, say, watch
        self.waiting = list(runs)
        self.before_last = [run.name for run in runs if not run.last]
        self.slots = slots or Slots(
            width, gpus=gpus() if any(run.gpu for run in runs) else [], lock=store.lock
        )
        self.active: list[Active] = []
        self.outcomes: dict[str, Outcome] = {}
        self.absent: set[str] = set()  # runs whose result was looked for and is not stored
        self.held: dict[str, Held] = {}
        self.stored = dict(stored or {})

    def work(self) -> dict[str, Outcome]:
        """Run everything. Raises OSError where the disk is full; processes at work are ended then,
        as on Ctrl-C.
        """
        try:
            while self.waiting or self.active:
                for run in list(self.waiting):
                    self._consider(run)
                for active in [
                    active for active in self.active if active.process.poll() is not None
                ]:
                    self._collect(active)
                self.watch(self.active)
                time.sleep(LOOK if self.active or self.held else 0)
        finally:
            for active in self.active:
                active.process.stdin.close()  # all at once
            for active in self.active:
                launch.end(active.process)
        return self.outcomes

    def _consider(self, run: Run) -> None:
        """Skip it, find it stored, start it, or leave it waiting."""
        if run.last and not all(name in self.outcomes for name in self.before_last):
            return
        if run.name in self.held and not self._let_go(run):
            return
        upstream = {name: self.outcomes.get(name) for name in run.needs}
        missing = [
            name
            for name, outcome in upstream.items()
            if outcome and outcome.status in ("failed", "skipped")
        ]
        if missing:
            self._settle(run, Outcome("skipped", error=f"it needs {missing[0]}"))
        elif all(upstream.values()) and (run.name not in self.absent or self.slots.fits(run)):
            needs = {name: outcome.key for name, outcome in upstream.items()}
            found = (
                None if run.last else self.stored.pop(run.name, None)
            )  # publishing changes what the last one reads
            key = found or launch.key_of(self.store, run, needs)
            if self.store.done(key).exists():
                self._settle(run, Outcome("cached", key))
            elif self.store.held(key):
                self.held[run.name] = Held(key)
                self.say(f"waiting   {run.name}: {self.store.holder(key)} has it")
            elif self.slots.take(run):
                self.waiting.remove(run)
                self._start(run, key)
            else:
                self.absent.add(
                    run.name
                )  # asking again costs a key; it is made anew when there is room

    def _let_go(self, run: Run) -> bool:
        """Whether a run that another driver had may be considered again; one that failed there is
        settled.
        """
        held = self.held[run.name]
        if time.monotonic() < held.look:
            return False
        held.look = time.monotonic() + LOOK_AGAIN
        if self.store.held(held.key):
            return False
        del self.held[run.name]
        error = self.store.failure(held.key, held.since)
        if error is not None:
            self._settle(run, Outcome("failed", held.key, error, time.time() - held.since))
        return error is None

    def _start(self, run: Run, key: str) -> None:
        log = self.store.log(run.profile, run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        err = log.open(
            "a+b"
        )  # to append: where another driver writes it too, neither spoils the other's lines
        out = tempfile.TemporaryFile()  # noqa: SIM115 (both are closed when the run is collected)
        gpu = self.slots.gpu_of(run)
        process = launch.start(self.store, run, key, run.threads, gpu, out, err)
        self.active.append(Active(run, key, process, out, err))
        threads = f"{run.threads} thread{'s' * (run.threads > 1)}"
        self.say(f"started   {run.name} ({threads}{', GPU ' + gpu if gpu else ''})")

    def _collect(self, active: Active) -> None:
        self.active.remove(active)
        active.process.stdin.close()
        self.slots.leave(active.run)
        outcome = active.outcome()
        active.out.close()
        active.err.close()
        if outcome.status == "full":
            raise no_space(self.store.runs)
        self._settle(active.run, outcome)

    def _settle(self, run: Run, outcome: Outcome) -> None:
        if run in self.waiting:
            self.waiting.remove(run)
        self.outcomes[run.name] = outcome
        if outcome.status in ("ran", "cached"):
            self.store.publish(outcome.key, run.profile, run.name)
        log = self.store.log(run.profile, run.name)
        told = f"; log: {os.path.relpath(log)}" if log.is_file() else ""
        what = {
            "ran": f"finished  {run.name} in {outcome.seconds:.0f} s, {outcome.peak_memory_mb} MB",
            "cached": f"stored    {run.name}",
            "failed": f"failed    {run.name} after {outcome.seconds:.0f} s: {outcome.error}{told}",
            "skipped": f"skipped   {run.name}: {outcome.error}",
        }
        self.say(what[outcome.status], done=True)
