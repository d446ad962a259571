"""All records of a profile in one tidy table: runs/PROFILE/results.csv and results.parquet, a row
for each score.

Columns: run and notebook; the record's own (method, removed, value, ...); `param_*`, the parameters
that are not the same in all runs of a notebook; `about_*`, the birth certificate (device, threads,
versions, commit, model, data, ...) with the run's seconds and memory; protocol. All runs that stand
in the folder are in it, also those that the report leaves out.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from prehab_lib.report.finished import Finished
from prehab_lib.runs.store import replacing

NAME = "results"
LEFT_OUT = (
    "notebook",
    "versions",
    "settings",
)  # columns of their own, and all parameters once more


def frame(finished: dict[str, list[Finished]]):
    """pandas.DataFrame of every record of every run; no rows where no run has scores."""
    import pandas

    rows = []
    for runs in finished.values():
        varying = _varying([run.run.get("params", {}) for run in runs])
        for run in runs:
            rows += [
                {"run": run.name, "notebook": run.notebook} | one for one in _rows(run, varying)
            ]
    table = pandas.DataFrame(rows)
    first = [name for name in table if not name.startswith(("param_", "about_", "protocol"))]
    later = [name for name in table if name.startswith("param_")] + [
        name for name in table if name.startswith("about_")
    ]
    return table[[*first, *later, *(["protocol"] if "protocol" in table else [])]]


def _rows(run: Finished, varying: list[str]) -> Iterable[dict]:
    params = run.run.get("params", {})
    beside = {f"param_{name}": _cell(params[name]) for name in varying if name in params}
    about = {name: run.about[name] for name in run.about if name not in LEFT_OUT} | run.about.get(
        "versions", {}
    )
    about |= {name: run.run[name] for name in ("seconds", "gpu") if name in run.run}
    about |= {"memory_mb": run.run["peak_memory_mb"]} if "peak_memory_mb" in run.run else {}
    beside |= {f"about_{name}": _cell(value) for name, value in about.items()}
    return [
        record | beside | {"protocol": run.result.get("protocol", "")} for record in run.records
    ]


def _varying(params: list[dict]) -> list[str]:
    """Names of parameters that are not the same in all runs of a notebook."""
    names = dict.fromkeys(name for one in params for name in one)
    return [
        name
        for name in names
        if len({json.dumps(one.get(name), sort_keys=True) for one in params}) > 1
    ]


def _cell(value):
    """What a cell of a table can hold: lists and dictionaries as JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value


def write(folder: Path, finished: dict[str, list[Finished]]) -> bool:
    """Write both files, each in one step; remove older ones and return False where no run has
    scores.
    """
    table = (
        frame(finished) if any(run.records for runs in finished.values() for run in runs) else None
    )
    targets = folder / f"{NAME}.csv", folder / f"{NAME}.parquet"
    if table is None:
        for target in targets:
            target.unlink(missing_ok=True)
        return False
    with replacing(targets[0]) as draft:
        table.to_csv(draft, index=False)
    with replacing(targets[1]) as draft:
        _one_kind(table).to_parquet(draft, index=False)
    return True


def _one_kind(table):
    """Parquet has one type a column: where runs gave texts and numbers, all become text."""
    mixed = {
        name: table[name].map(lambda value: None if value is None or value != value else str(value))
        for name in table
        if table[name].dtype == object and len({type(value) for value in table[name].dropna()}) > 1
    }
    return table.assign(**mixed)
