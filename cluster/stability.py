"""Do verdicts survive other seeds? A profile run twice, and its statuses side by side.

Each of the two has runs and trained models of its own: runs/.stability/SHIFT. One has the seeds
that the profile names, the other those plus 100.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas

from prehab_lib.report import audit
from prehab_lib.runs import plan
from prehab_lib.runs.store import Store

SHIFTS = (0, 100)  # added to every seed of the profile
MOST = 3  # statuses that may differ


def main(planned: Sequence[plan.Run], width: int, work: Callable) -> int:
    """The profile with its own seeds and with others, then their statuses side by side.

    width: runs at a time.  work: `run.main`.  Exit code: 1 where a run failed, or as `report`.
    """
    for shift in SHIFTS:
        place = folder(shift)
        os.environ["PREHAB_CACHE"] = str(place / "cache")
        print(f"seeds + {shift}: {os.path.relpath(place)}", flush=True)
        if work(shifted(planned, shift), Store(place), width):
            return 1
    return report(planned[0].profile)


def folder(shift: int) -> Path:
    """Where the runs with shifted seeds are kept."""
    return plan.home() / "runs" / ".stability" / str(shift)


def shifted(planned: Sequence[plan.Run], shift: int) -> list[plan.Run]:
    """These runs with other seeds, without those that only read results."""
    runs = []
    for run in planned:
        params = dict(run.params)
        if "seeds" in params:
            params["seeds"] = [seed + shift for seed in params["seeds"]]
        if not run.last:
            runs.append(replace(run, params=params))
    return runs


def compared(profile: str) -> pandas.DataFrame:
    """A row a claim: id, status and effect of either side, and whether the statuses differ."""
    sides = [audit.results(folder(shift) / profile) for shift in SHIFTS]
    if not all(sides):  # the paper's own sums need no run: they would agree by themselves
        wanted = "run it with the runs that the params files make, without --grid"
        raise ValueError(f"there is no claim of {profile} to compare: {wanted}")
    one, other = map(audit.judge, sides)
    table = one[["id"]].copy()
    for shift, judged in zip(SHIFTS, (one, other), strict=True):
        table[f"status, seeds + {shift}"] = judged.status
        table[f"effect, seeds + {shift}"] = judged.verdict.str.partition(": ")[2]
    table["differs"] = one.status != other.status
    return table


def report(profile: str) -> int:
    """Print the table of `compared`, keep it as PROFILE.md; 1 where more than MOST differ, else 0.

    Claims that neither side has run are left out.
    """
    table = compared(profile)
    table = table[~table.filter(like="status").isin(["not run", "not tested here"]).all(axis=1)]
    differing = table.id[table.differs]
    table["differs"] = table.differs.map({True: "yes", False: ""})
    names = f": {', '.join(differing)}" if len(differing) else ""
    last = f"{len(differing)} of {len(table)} statuses differ{names}. At most {MOST} may."
    lines = [*table.to_markdown(index=False, disable_numparse=True).splitlines(), "", last]
    file = folder(SHIFTS[0]).parent / f"{profile}.md"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, f"written: {os.path.relpath(file)}", sep="\n")
    return int(len(differing) > MOST)
