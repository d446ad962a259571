"""`python cluster/stability.py PROFILE` (make stability): do verdicts survive other seeds?

The profile runs twice, with the seeds that it names and with those plus 100; further words are those of `python -m prehab_lib run`.
Each of the two has runs and trained models of its own, runs/.stability/SHIFT. Then their statuses stand side by side.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's library, installed or not

from prehab_lib import __main__, run  # noqa: E402
from prehab_lib.report import audit  # noqa: E402
from prehab_lib.runs import listed, plan  # noqa: E402
from prehab_lib.runs.store import Store  # noqa: E402

SHIFTS = (0, 100)  # added to every seed of the profile
MOST = 3  # statuses that may differ


def main(words: list[str] | None = None) -> int:
    """Exit code: 1 where a run failed or more than MOST statuses differ, 2 for an error of the user's."""
    arguments = __main__.parser().parse_args(["run", *(sys.argv[1:] if words is None else words)])
    try:
        planned = listed.planned(arguments)
        for shift in SHIFTS:
            place = folder(shift)
            os.environ["PREHAB_CACHE"] = str(place / "cache")
            print(f"seeds + {shift}: {os.path.relpath(place)}", flush=True)
            if run.main(shifted(planned, shift), Store(place), arguments.j):
                return 1
        return report(arguments.profile)
    except (ValueError, OSError) as error:
        print(f"stability: {error}", file=sys.stderr)
        return 2


def folder(shift: int) -> Path:
    """Where the runs with shifted seeds are kept."""
    return plan.home() / "runs" / ".stability" / str(shift)


def shifted(planned: Sequence[plan.Run], shift: int) -> list[plan.Run]:
    """These runs with other seeds, without those that only read results."""
    runs = []
    for one in planned:
        params = dict(one.params)
        if "seeds" in params:
            params["seeds"] = [seed + shift for seed in params["seeds"]]
        if not one.last:
            runs.append(replace(one, params=params))
    return runs


def report(profile: str) -> int:
    """Print id, status and effect of each claim on either side, and keep them as PROFILE.md; 1 where more than MOST differ, else 0.

    Claims that neither side has run are left out. Raises ValueError where a side has no run.
    """
    sides = [audit.results(folder(shift) / profile) for shift in SHIFTS]
    if not all(sides):  # the paper's own sums need no run: they would agree by themselves
        wanted = "run it with the runs that the params files make, without --grid"
        raise ValueError(f"there is no claim of {profile} to compare: {wanted}")
    one, other = map(audit.judge, sides)
    table = one[["id"]].copy()
    for shift, judged in zip(SHIFTS, (one, other), strict=True):
        table[f"status, seeds + {shift}"] = judged.status
        table[f"effect, seeds + {shift}"] = judged.verdict.str.partition(": ")[2]
    table["differs"] = (one.status != other.status).map({True: "yes", False: ""})
    table = table[~table.filter(like="status").isin(["not run", "not tested here"]).all(axis=1)]
    differing = table.id[table.differs == "yes"]
    names = f": {', '.join(differing)}" if len(differing) else ""
    last = f"{len(differing)} of {len(table)} statuses differ{names}. At most {MOST} may."
    lines = [*table.to_markdown(index=False, disable_numparse=True).splitlines(), "", last]
    file = folder(SHIFTS[0]).parent / f"{profile}.md"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, f"written: {os.path.relpath(file)}", sep="\n")
    return int(len(differing) > MOST)


if __name__ == "__main__":
    sys.exit(main())
