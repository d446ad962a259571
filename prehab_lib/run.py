"""`python -m prehab_lib run PROFILE`: the runs of a profile on this machine, and what is said.

A failing notebook stops no other. Killed at any moment, the same command resumes with what is
missing: a run is stored whole or not at all, and its processes die with this one.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from prehab_lib.runs import plan
from prehab_lib.runs.pool import Pool
from prehab_lib.runs.store import READ_ONLY, Store


def main(planned: Sequence[plan.Run], store: Store, width: int) -> int:
    """Do these runs of one profile, `width` at a time. Returns 0, or 1 where one failed.

    Raises Busy, before anything is written, where another driver is at work on the profile.
    """
    profile, clock = planned[0].profile, time.monotonic()
    with store.hold_profile(profile):
        store.sweep()
        for notebook in dict.fromkeys(run.notebook for run in planned):
            params = Path("params") / f"{notebook.stem}.{profile}.yaml"
            if profile != "smoke" and not (notebook.parents[1] / params).is_file():
                print(f"note      there is no {params}: {notebook.stem} runs with its own defaults")
        outcomes = Pool(store, width, plan.gpus()).work(planned)
    by = {status: [] for status in ("ran", "cached", "failed")}
    for name, outcome in outcomes.items():
        by[outcome.status].append(name)
    if len(by["cached"]) == len(outcomes):
        note = "" if os.access(store.runs, os.W_OK) else READ_ONLY
        print(f"already up to date: {len(outcomes)} of {len(outcomes)} runs are stored{note}")
        return 0
    counts = ", ".join(f"{len(names)} {status}" for status, names in by.items())
    print(f"{profile}: {counts} in {time.monotonic() - clock:.0f} s")
    for status in ("ran", "cached"):
        if by[status]:
            print(f"  {status}: {', '.join(by[status])}")
    for name in by["failed"]:
        print(f"  failed: {name}: {outcomes[name].error}")
    return int(bool(by["failed"]))


def one(planned: Sequence[plan.Run], store: Store, name: str) -> int:
    """Do one of these runs, as `main` does, for a scheduler. Returns 0, or 1 where it failed."""
    chosen = [run for run in planned if run.name == name]
    if not chosen:
        names = ", ".join(run.name for run in planned)
        raise ValueError(f"no run {json.dumps(name)}: there are {names}")
    outcome = Pool(store).work(chosen)[name]
    if outcome.status == "cached":
        print(f"stored    {name}")
    return int(outcome.status == "failed")
