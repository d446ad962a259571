"""`python -m prehab_lib run PROFILE`: the runs of a profile on this machine, and what is said.

A failing notebook stops no other. Killed at any moment, the same command resumes with what is
missing, for a run is stored whole or not at all (`store.py`) and its processes die with this one
(`unit.py`).
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prehab_lib.runs import plan
from prehab_lib.runs.pool import Outcome, Pool, found, key_of
from prehab_lib.runs.store import Store

SHOWN = 10  # runs of a grid named before it starts


def _listed(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _kept(store: Store, key: str) -> str:
    """Where the notebook of a failed run lies, with its traceback."""
    notebook = next(store.failed(key).glob("*.ipynb"), None)
    return f" (see {os.path.relpath(notebook)})" if notebook else ""


def notes(store: Store, home: Path, profile: str, planned: Sequence[plan.Run]) -> list[str]:
    """What to know before it starts: missing params files, grids, runs the report leaves out."""
    lines = [run.note for run in planned if run.note and not store.published(profile, run.name)]
    for notebook in dict.fromkeys(run.notebook for run in planned if run.suffix):
        suffixes = [run.suffix for run in planned if run.notebook == notebook]
        runs = "1 run" if len(suffixes) == 1 else f"{len(suffixes)} runs"
        lines.append(f"{notebook.stem} makes {runs}: {_listed(suffixes)}")
    known = plan.expected(home, profile, {run.notebook.stem for run in planned})
    strange = [run.name for run in planned if run.name not in known[run.notebook.stem]]
    outside = sorted({*store.outside(profile, known), *strange})
    if outside:
        what = "not of the profile as its params files stand: the report leaves them out"
        lines.append(f"{what}: {_listed(outside)}")
    return lines


def summary(store: Store, profile: str, outcomes: dict[str, Outcome], seconds: float) -> list[str]:
    """Closing lines: what ran, what was stored, what failed and where its notebook lies."""
    by = {status: [] for status in ("ran", "cached", "failed")}
    for name, outcome in outcomes.items():
        by[outcome.status].append(name)
    if len(by["cached"]) == len(outcomes):
        return [f"already up to date: {len(outcomes)} of {len(outcomes)} runs are stored"]
    counts = ", ".join(f"{len(names)} {status}" for status, names in by.items())
    lines = [f"{profile}: {counts} in {seconds:.0f} s"]
    lines += [f"  {status}: {', '.join(by[status])}" for status in ("ran", "cached") if by[status]]
    for name in by["failed"]:
        where = _kept(store, outcomes[name].key)
        lines.append(f"  failed: {name}: {outcomes[name].error}{where}")
    return lines


def main(planned: Sequence[plan.Run], width: int, home: Path) -> int:
    """Do these runs of one profile, `width` at a time. Returns 0, or 1 where one failed.

    Raises Busy, before anything is written, where another driver is at work on the profile.
    """
    from tqdm import tqdm

    profile, store, clock = planned[0].profile, Store(home / "runs"), time.monotonic()
    shown = sys.stdout.isatty()
    with (
        store.hold_profile(profile),
        tqdm(total=len(planned), disable=not shown, file=sys.stdout, leave=False) as bar,
    ):

        def say(line: str) -> None:
            bar.write(line, file=sys.stdout)
            sys.stdout.flush()

        def tick(settled: int) -> None:
            bar.n = settled
            bar.set_postfix_str(pool.at_work())

        store.sweep()
        for line in notes(store, home, profile, planned):
            say(f"note      {line}")
        pool = Pool(store, width, say, plan.gpus() if any(run.gpu for run in planned) else ())
        outcomes = pool.work(planned, tick)
    print("\n".join(summary(store, profile, outcomes, time.monotonic() - clock)), flush=True)
    return int(any(outcome.status == "failed" for outcome in outcomes.values()))


def one(planned: Sequence[plan.Run], name: str, home: Path) -> int:
    """Execute and publish one of these runs, as `main` does; a scheduler has chosen where and when.

    Returns 0, also where it was stored before, or 1 where it failed.
    """
    chosen = [run for run in planned if run.name == name]
    if not chosen:
        raise ValueError(f'no run "{name}": there are {", ".join(run.name for run in planned)}')
    outcome = Pool(Store(home / "runs"), 1, lambda line: print(line, flush=True)).work(chosen)[name]
    if outcome.status == "cached":
        print(f"stored    {name}")
    return int(outcome.status == "failed")


def table(planned: Sequence[plan.Run], store: Store) -> str:
    """What `plan` prints: a line for each run, and whether it is stored or why it is not."""
    wide = max(len(run.name) for run in planned)
    lines = [f"{'run':{wide}}  threads  GPU  stored"]
    for run in planned:
        outcome = found(store, key_of(store, run))
        stored = "yes" if outcome else "no"
        if outcome and outcome.error:
            stored = f"failed: {outcome.error}{_kept(store, outcome.key)}"
        lines.append(
            f"{run.name:{wide}}  {run.threads:7}  {'yes' if run.gpu else 'no':3}  {stored}"
        )
    return "\n".join(lines)
