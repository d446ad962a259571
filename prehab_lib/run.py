"""`python -m prehab_lib run PROFILE`: the runs of a plan on this machine, with what a reader is
told before and after.

A failing notebook stops only what needs it. Killed at any moment, the same command resumes with
what is missing, for a run is stored whole or not at all (`store.py`) and its processes die with
this one (`unit.py`).
"""

import os
import sys
import time
from pathlib import Path

from prehab_lib.runs import launch, plan, priced, shard
from prehab_lib.runs.launch import Outcome
from prehab_lib.runs.machine import gpus
from prehab_lib.runs.pool import Active, Pool
from prehab_lib.runs.slots import Slots
from prehab_lib.runs.store import Store

SHOWN = 10  # runs of a grid named before it starts


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
    """What a reader should know before the first run starts: missing params files, grids, runs the
    report leaves out.
    """
    lines = [run.note for run in planned if run.note and not store.published(profile, run.name)]
    for notebook in dict.fromkeys(run.notebook for run in planned if run.suffix):
        made = [run.suffix for run in planned if run.notebook == notebook]
        told = ", ".join(made[:SHOWN]) + (
            f" and {len(made) - SHOWN} more" if len(made) > SHOWN else ""
        )
        lines.append(f"{notebook.stem} makes {len(made)} run{'s' * (len(made) > 1)}: {told}")
    known = plan.expected(home, profile, {run.notebook.stem for run in planned})
    strange = {run.name for run in planned if run.name not in known[run.notebook.stem]}
    outside = sorted({*store.outside(profile, known), *strange})
    if len(outside) > SHOWN:
        lines.append(
            f"{len(outside)} runs, as {outside[0]}, are none of the profile as its params files stand: the report leaves "
            "them out, results.csv has them"
        )
        return lines
    for name in outside:
        lines.append(
            f"{name} is no run of the profile as its params file stands: the report leaves it out"
        )
    return lines


def _watcher(bar):
    """Shows the runs at work behind the bar, each with its cell and its time; does nothing where
    nobody watches.
    """
    shown = [0.0]

    def watch(active: list[Active]) -> None:
        if not bar.disable and time.monotonic() - shown[0] > 0.5:
            shown[0] = time.monotonic()
            bar.set_postfix_str(", ".join(map(str, active)))

    return watch


def main(
    profile: str,
    wanted: list[str] = (),
    overrides: dict | None = None,
    width: int = 2,
    home: Path | None = None,
    axes: dict | None = None,
    threads: int | None = None,
    part: tuple[int, int] | None = None,
) -> int:
    """Run a profile. Returns 0, or 1 where a run failed. Errors of the user's are raised before
    anything is written.

    axes: a grid from the command line. threads: of every run. part: (i, n), the i-th of n parts
    alone.
    """
    from tqdm import tqdm

    home = home or plan.home()
    planned, ahead = plan.runs(home, profile, list(wanted), overrides or {}, axes, threads), []
    if part:
        ahead = [shard.note(planned, *part)]
        planned = shard.part(planned, *part)
    planned = priced.priced(planned, home)
    store, clock = Store(home / "runs"), time.monotonic()
    store.sweep()
    stored = launch.stored(store, planned)
    with tqdm(
        total=len(planned),
        disable=not sys.stdout.isatty(),
        file=sys.stdout,
        unit="run",
        leave=False,
    ) as bar:

        def say(line: str, done: bool = False) -> None:
            if not line.startswith("stored"):
                bar.write(line, file=sys.stdout)
                sys.stdout.flush()
            bar.update(done)

        devices = gpus() if any(run.gpu for run in planned) else []
        slots = Slots(width, gpus=devices, lock=store.lock)
        for line in ahead + notes(store, home, profile, planned):
            say(f"note      {line}")
        if len(stored) < len(planned):
            left = [run for run in planned if run.name not in stored]
            for line in slots.notes(left):
                say(f"note      {line}")
            say(f"plan      {priced.total(planned, stored, Slots(width, gpus=devices))}")
        outcomes = Pool(store, planned, width, say, _watcher(bar), slots, stored).work()
    print("\n".join(summary(store, profile, outcomes, time.monotonic() - clock)), flush=True)
    return int(any(outcome.status in ("failed", "skipped") for outcome in outcomes.values()))
