"""All results of a profile on one page, ours beside the paper's: `python -m prehab_lib report
PROFILE`.
"""

import json
import os
from pathlib import Path

import pandas

from prehab_lib.report import audit, finished, tables
from prehab_lib.report.finished import Finished
from prehab_lib.runs import plan
from prehab_lib.runs.certificate import replacing
from prehab_lib.runs.store import copy

# Of a birth certificate: what has columns of its own, and all parameters once more.
LEFT_OUT = ("notebook", "versions", "settings")


def _facts(run: Finished) -> dict:
    """A run's birth certificate on one level, with the seconds and memory that it took."""
    facts = {name: value for name, value in run.about.items() if name not in LEFT_OUT}
    facts |= run.about.get("versions", {})
    names = {"seconds": "seconds", "gpu": "gpu", "peak_memory_mb": "memory_mb"}
    return facts | {name: run.run[key] for key, name in names.items() if key in run.run}


def _claims(runs: list[Finished]) -> list[str]:
    """A line for each claim that a run printed."""
    lines = []
    for run in runs:
        apart = f" in {run.label}" if len(runs) > 1 else ""
        for claim in run.claims:
            verdict = f"holds at {claim['holds']}" if claim["holds"] else "does not hold: 0"
            counted = f"{verdict} of {claim['cases']} {claim['of']}".strip()
            sides = f"(paper {claim['paper']}; ours: {claim['ours']})"
            lines.append(f"- {claim['sentence']}: **{counted}**{apart} {sides}")
    return ["Claims (compare sign and order, not size):", "", *lines, ""] if lines else []


def _section(runs: list[Finished]) -> tuple[list[str], list[tables.Table]]:
    """Lines on the runs of one notebook, and the tables in them."""
    about = {}
    for name in ("model", "data"):
        values = dict.fromkeys(str(run.about[name]) for run in runs if name in run.about)
        if values:
            about[name] = ", ".join(values)
    # One measurement that several runs record differs in its seconds alone.
    records = [record for run in runs for record in run.records]
    alike = {json.dumps(record | {"seconds": 0}, sort_keys=True): record for record in records}
    lines, printed = [], []
    for table in tables.tables(runs[0].notebook, about, list(alike.values())):
        lines += [f"### {table.title}", "", *tables.markdown(table), ""]
        if not table.refusal:
            lines += [f"Numbers: tables/{table.name}.csv", ""]
            printed.append(table)
    lines += [*_claims(runs), "Made by:", ""]
    for run in runs:
        seeds = sorted({record["seed"] for record in run.records})
        facts = {"profile": run.run.get("profile"), "seeds": seeds} | _facts(run)
        facts["scores"] = run.result.get("protocol")
        text = ", ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
        lines.append(f"- {run.label}: {text}")
    return lines, printed


def _verdicts(folder: Path) -> list[str]:
    """The page of notebook 10, from what lies in the folder now; or why it cannot be made."""
    try:
        runs = audit.results(folder)
        return audit.page(audit.judge(runs), runs)
    except ValueError as error:
        return [f"Not judged: {error}."]


def _cells(prefix: str, values: dict) -> dict:
    """What cells of a table can hold: lists and dictionaries as JSON."""
    cells = {prefix + name: value for name, value in values.items()}
    for name, value in cells.items():
        if isinstance(value, (list, dict)):
            cells[name] = json.dumps(value, sort_keys=True)
    return cells


def long_table(runs: list[Finished]) -> pandas.DataFrame:
    """Every record of every run, a row a score; also of runs that the report leaves out.

    Columns: run and notebook; the record's own; `param_*`, the parameters that are not the same in
    all runs of a notebook; `about_*`, the birth certificate with the run's seconds and memory;
    protocol.
    """
    params = pandas.DataFrame([_cells("param_", run.run.get("params", {})) for run in runs])
    varying = params.groupby([run.notebook for run in runs]).nunique(dropna=False) > 1
    rows = []
    for run in runs:
        values = _cells("param_", run.run.get("params", {}))
        beside = {name: value for name, value in values.items() if varying.at[run.notebook, name]}
        beside |= _cells("about_", _facts(run))
        beside["protocol"] = run.result.get("protocol", "")
        named = {"run": run.name, "notebook": run.notebook}
        rows += [named | record | beside for record in run.records]
    table = pandas.DataFrame(rows)
    ends = ("param_", "about_", "protocol")
    return table[sorted(table, key=lambda name: [name.startswith(end) for end in ends[::-1]])]


def _write_long_table(folder: Path, table: pandas.DataFrame) -> None:
    """results.csv and results.parquet; older ones go where no run has scores."""
    targets = folder / "results.csv", folder / "results.parquet"
    if table.empty:
        for target in targets:
            target.unlink(missing_ok=True)
        return
    with replacing(targets[0]) as draft:
        table.to_csv(draft, index=False)
    for name in table:
        # Parquet has one type a column: where runs gave texts and numbers, all become text.
        if table[name].dropna().map(type).nunique() > 1:
            table[name] = table[name].map(str, na_action="ignore")
    with replacing(targets[1]) as draft:
        table.to_parquet(draft, index=False)


def _start(what: str, profile: str) -> FileNotFoundError:
    remedy = f"start with `python -m prehab_lib run {profile}`"
    return FileNotFoundError(f"no {what} of {profile}: {remedy}")


def write(profile: str) -> str:
    """Write runs/PROFILE/report.md, a CSV for each table, and all records in one; returns the
    report's path, relative.

    Raises FileNotFoundError where the profile has no finished run.
    """
    folder = plan.home() / "runs" / profile
    found = finished.read(folder)
    if not found:
        raise _start("finished run", profile)
    scores = long_table(found)
    _write_long_table(folder, scores)
    lines = [f"# Profile {profile}: results beside the paper's", ""]
    lines += ["## Every claim with its verdict", "", *_verdicts(folder), ""]
    lines += ["Below, rows in italics are the paper's numbers, made with its own models and data."]
    if len(scores):
        lines.append("All records of all runs, one a row: results.csv, results.parquet")
    notebooks = sorted({run.notebook for run in found})
    planned = plan.expected(plan.home(), profile, notebooks)
    printed: list[tables.Table] = []
    for notebook in notebooks:
        lines += ["", f"## {notebook}", ""]
        by_name = {run.name: run for run in found if run.notebook == notebook}
        wanted = planned.get(notebook, by_name)
        outside = [name for name in by_name if name not in wanted]
        missing = [name for name in wanted if name not in by_name]
        if notebook not in planned:
            lines += ["There is no such notebook any more: this is what it left.", ""]
        if outside:
            makes = f"for params/{notebook}.{profile}.yaml as it stands makes no such run"
            lines += [f"Left out, {makes}: {', '.join(outside)}.", ""]
        if missing:
            lines += [f"Not there yet: {', '.join(missing)}.", ""]
        kept = [by_name[name] for name in wanted if name in by_name]
        if kept:
            section, drawn = _section(kept)
            lines += section
            printed += drawn
    for file in (folder / "tables").glob("*.csv"):
        file.unlink()
    for table in printed:
        with replacing(folder / "tables" / f"{table.name}.csv") as draft:
            table.cells.to_csv(draft, index=False)
    with replacing(folder / "report.md") as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return os.path.relpath(folder / "report.md")


def copy_figures(profile: str) -> tuple[int, str]:
    """Copy runs/PROFILE/figures to figures/PROFILE, but not those of runs that the plan has no
    more, and write the page of verdicts beside them.

    Returns the number of files and the folder, relative. Raises FileNotFoundError where the profile
    has made no figure.
    """
    home = plan.home()
    folder, target = home / "runs" / profile, home / "figures" / profile
    found = finished.read(folder)
    planned = plan.expected(home, profile, {run.notebook for run in found})
    left_out = set()
    for run in found:
        if run.name not in planned.get(run.notebook, [run.name]):
            left_out.update(finished.figures(folder, run.name, run.run))
    source = folder / "figures"
    files = [file for file in source.rglob("[!.]*") if file.is_file() and file not in left_out]
    if not files:
        raise _start("figures", profile)
    for file in files:
        copy(file, target / file.relative_to(source))
    if (target / "verdicts.csv").is_file():
        audit.write(profile)
    return len(files), os.path.relpath(target)
