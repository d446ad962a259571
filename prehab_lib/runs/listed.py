"""What is printed before a run: the runs chosen of a profile, and the data that they need."""

import os
from collections.abc import Sequence

from prehab_lib.runs import inputs, plan
from prehab_lib.runs.pool import found, key_of
from prehab_lib.runs.store import Store


def planned(arguments) -> list:
    """The runs that the arguments of `run`, `plan` or `one` choose."""
    for flag, pairs in (("-p", arguments.p), ("--grid", arguments.grid)):
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{flag} {twice[0]} is given twice: write it once")
    chosen = (arguments.notebooks, dict(arguments.p), dict(arguments.grid), arguments.threads)
    return plan.runs(plan.home(), arguments.profile, *chosen)


def table(planned: Sequence[plan.Run], store: Store) -> str:
    """What `plan` prints: a line for each run, and whether it is stored or why it is not."""
    wide = max(len(run.name) for run in planned)
    lines = [f"{'run':{wide}}  threads  GPU  stored"]
    for run in planned:
        outcome = found(store, key_of(store, run))
        stored = "yes" if outcome else "no"
        if outcome and outcome.error:
            stored = f"failed: {outcome.error}"
        gpu = "yes" if run.gpu else "no"
        lines.append(f"{run.name:{wide}}  {run.threads:7}  {gpu:3}  {stored}")
    return "\n".join(lines)


def needed(profile: str, data_root: str | None = None) -> str:
    """What `data` prints: which data sets each notebook needs, and where each of them is.

    data_root: looked in instead of PREHAB_DATA. Raises ValueError for an unknown profile.
    """
    from prehab_lib.tasks import data  # imports torch

    home = plan.home()
    plan.check_profile(home, profile)
    looked = data_root or os.environ.get("PREHAB_DATA") or "no folder: PREHAB_DATA is not set"
    lines = [f"profile {profile}, looking in {looked}"]
    for notebook, runs in plan.expected(home, profile, plan.notebooks(home)).items():
        names = [name for params in runs.values() for name in inputs.data_sets_of(params)]
        paths = {text: 0 for params in runs.values() for _, text in inputs.paths(params)}
        if not names and not paths:
            lines.append(f"{notebook}: nothing, its data is embedded")
        for path in paths:
            lines.append(f"{notebook}: {path} is {'there' if os.path.exists(path) else 'missing'}")
        for name in dict.fromkeys(names):
            source = data.DATASETS[name]
            place = f'comes from the hub ("{source.hub}") unless PREHAB_DATA has {name}'
            try:
                folder = data.where(name, data_root)
                place = f"is in {folder}" if folder else place
            except FileNotFoundError as error:
                place = f"is missing: {error}"
            note = f" ({source.note})" if source.note else ""
            lines.append(f"{notebook}: {name}{note} {place}")
    return "\n".join(lines)
