"""Parts of a plan for a job array without an engine: `run PROFILE --shard i/n`, one call for each i
from 0 to n - 1.

    python -m prehab_lib run lab --shard $SLURM_ARRAY_TASK_ID/8          # under sbatch --array=0-7
    python -m prehab_lib run lab --shard $JOB_COMPLETION_INDEX/8         # an indexed Kubernetes Job
    python -m prehab_lib run lab                                         # then once: what reads all
    results

Runs that need one another are in one part, so that no part waits for another; the parts share the
store.
"""

import re

from prehab_lib.runs.plan import Run


def index(text: str) -> tuple[int, int]:
    """(i, n) of "i/n". Raises ValueError where it is none."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not i < n:
        raise ValueError(f"--shard {text}: write i/n with 0 <= i < n, as 0/8 to 7/8")
    return i, n


def part(planned: list[Run], i: int, n: int) -> list[Run]:
    """The i-th of n parts, in the plan's order. Chains are dealt out in turn, so that a grid
    spreads evenly.

    Every run is in exactly one part, but those that are `last`: they wait for all others, and are
    in none.
    """
    mine = chains(planned)[i::n]
    names = {name for chain in mine for name in chain}
    return [run for run in planned if run.name in names]


def chains(planned: list[Run]) -> list[set[str]]:
    """Names of runs that need one another, directly or not, in the order of each chain's first run."""
    found: list[set[str]] = []
    for run in planned:
        if run.last:
            continue
        joined = {run.name}.union(*(chain for chain in found if chain & set(run.needs)))
        place = next((place for place, chain in enumerate(found) if chain <= joined), len(found))
        found = [chain for chain in found if not chain <= joined]
        found.insert(place, joined)
    return found


def note(planned: list[Run], i: int, n: int) -> str:
    """What a reader should know of a part."""
    mine, left = part(planned, i, n), [run.name for run in planned if run.last]
    counted = f"shard {i} of {n} (from 0): {len(mine)} of {len(planned)} runs"
    few = (
        f", for the plan has {len(chains(planned))} parts"
        if len(chains(planned)) < n and not mine
        else ""
    )
    later = (
        f"; {', '.join(left)}: by the same command without --shard, once all shards have ended"
        if left
        else ""
    )
    return counted + few + later
