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
START = "start with `python -m prehab_lib run"


def _facts(run: Finished) -> dict:
    """A run's birth certificate on one level, with the seconds and memory that it took."""
    facts = {name: value for name, value in run.about.items() if name not in LEFT_OUT}
    facts |= run.about.get("versions", {})
    names = {"seconds": "seconds", "gpu": "gpu", "peak_memory_mb": "memory_mb"}
    return facts | {name: run.run[key] for key, name in names.items() if key in run.run}


def _section(folder: Path, runs: list[Finished]) -> list[str]:
    """Lines on the runs of one notebook; the numbers of its tables go into the folder."""
    about = {}
    for name in ("model", "data"):
        values = [str(run.about[name]) for run in runs if name in run.about]
        about[name] = ", ".join(dict.fromkeys(values))
    # One measurement that several runs record differs in its seconds alone.
    records = [record for run in runs for record in run.records]
    alike = {json.dumps(record | {"seconds": 0}, sort_keys=True): record for record in records}
    lines, claims, makers = [], [], []
    for table in tables.tables(runs[0].notebook, about, list(alike.values())):
        lines += [f"### {table.title}", "", *tables.markdown(table), ""]
        if not table.refusal:
            lines += [f"Numbers: tables/{table.name}.csv", ""]
            with replacing(folder / f"{table.name}.csv") as draft:
                table.cells.to_csv(draft, index=False)
    for run in runs:
        apart = f" in {run.label}" if len(runs) > 1 else ""
        for claim in run.claims:
            verdict = f"holds at {claim['holds']}" if claim["holds"] else "does not hold: 0"
            counted = f"{verdict} of {claim['cases']} {claim['of']}".strip()
            sides = f"(paper {claim['paper']}; ours: {claim['ours']})"
            claims.append(f"- {claim['sentence']}: **{counted}**{apart} {sides}")
        seeds = sorted({record["seed"] for record in run.records})
        facts = {"profile": run.run.get("profile"), "seeds": seeds} | _facts(run)
        facts["scores"] = run.result.get("protocol")
        text = ", ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
        makers.append(f"- {run.label}: {text}")
    if claims:
        lines += ["Claims (compare sign and order, not size):", "", *claims, ""]
    return [*lines, "Made by:", "", *makers]


def _cell(value):
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value


def long_table(runs: list[Finished]) -> pandas.DataFrame:
    """Every record of every run, a row a score; also of runs that the report leaves out.

    Columns: run and notebook; the record's own; `param_*`, the parameters that are not the same in
    all runs of a notebook; `about_*`, the birth certificate with the run's seconds and memory;
    protocol. Lists and dictionaries are JSON.
    """
    runs = [run for run in runs if run.records]
    if not runs:
        return pandas.DataFrame()
    names = pandas.DataFrame([{"run": run.name, "notebook": run.notebook} for run in runs])
    params = pandas.DataFrame([run.run.get("params", {}) for run in runs]).map(_cell)
    different = params.groupby(names.notebook).transform("nunique", dropna=False) > 1
    params = params.where(different).dropna(axis=1, how="all").add_prefix("param_")
    about = pandas.DataFrame([_facts(run) for run in runs]).map(_cell).add_prefix("about_")
    beside = pandas.concat([names.run, params, about], axis=1)
    beside["protocol"] = [run.result.get("protocol", "") for run in runs]
    records = pandas.DataFrame([{"run": run.name} | one for run in runs for one in run.records])
    return names.merge(records, on="run").merge(beside, on="run")


def _write_long_table(folder: Path, table: pandas.DataFrame) -> None:
    """results.csv and results.parquet; older ones go where no run has scores."""
    if table.empty:
        for file in folder.glob("results.*"):
            file.unlink()
        return
    with replacing(folder / "results.csv") as draft:
        table.to_csv(draft, index=False)
    for name in table:
        # Parquet has one type a column: where runs gave texts and numbers, all become text.
        if table[name].dropna().map(type).nunique() > 1:
            table[name] = table[name].map(str, na_action="ignore")
    with replacing(folder / "results.parquet") as draft:
        table.to_parquet(draft, index=False)


def write(profile: str) -> str:
    """Write runs/PROFILE/report.md, a CSV for each table, and all records in one; gives its path.

    Raises FileNotFoundError where the profile has no finished run.
    """
    folder = plan.home() / "runs" / profile
    found = finished.read(folder)
    if not found:
        raise FileNotFoundError(f"no finished run of {profile}: {START} {profile}`")
    scores = long_table(found)
    _write_long_table(folder, scores)
    try:
        runs = audit.results(folder)
        verdicts = audit.page(audit.judge(runs), runs)
    except ValueError as error:
        verdicts = [f"Not judged: {error}."]
    lines = [f"# Profile {profile}: results beside the paper's", ""]
    lines += ["## Every claim with its verdict", "", *verdicts, ""]
    lines += ["Below, rows in italics are the paper's numbers, made with its own models and data."]
    if len(scores):
        lines.append("All records of all runs, one a row: results.csv, results.parquet")
    notebooks = sorted({run.notebook for run in found})
    planned = plan.expected(plan.home(), profile, notebooks)
    for file in (folder / "tables").glob("*.csv"):
        file.unlink()
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
        lines += _section(folder / "tables", kept) if kept else []
    with replacing(folder / "report.md") as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return os.path.relpath(folder / "report.md")


def copy_figures(profile: str) -> tuple[int, str]:
    """Copy runs/PROFILE/figures to figures/PROFILE, with the page of verdicts: (files, folder).

    Figures of runs that the plan has no more stay. Raises FileNotFoundError where there is none.
    """
    home = plan.home()
    folder, target = home / "runs" / profile, home / "figures" / profile
    found = finished.read(folder)
    planned = plan.expected(home, profile, {run.notebook for run in found})
    stale = [run for run in found if run.name not in planned.get(run.notebook, [run.name])]
    left_out = {file for run in stale for file in finished.figures(folder, run.name, run.run)}
    source = folder / "figures"
    files = [file for file in source.rglob("[!.]*") if file.is_file() and file not in left_out]
    if not files:
        raise FileNotFoundError(f"no figures of {profile}: {START} {profile}`")
    copy({file: target / file.relative_to(source) for file in files})
    if (target / "verdicts.csv").is_file():
        audit.write(profile)
    return len(files), os.path.relpath(target)
