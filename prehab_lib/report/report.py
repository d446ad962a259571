"""All results of a profile on one page, beside the paper's: `python -m prehab_lib report`."""

import json
import os

import pandas

from prehab_lib.report import audit, finished, tables
from prehab_lib.report.finished import Finished
from prehab_lib.runs import certificate, plan
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


def _section(runs: list[Finished]) -> list[str]:
    """Tables, certificates and claims of the runs of one notebook."""
    about = {}
    for name in ("model", "data"):
        values = [str(run.about[name]) for run in runs if name in run.about]
        about[name] = ", ".join(dict.fromkeys(values))
    # One measurement that several runs record differs in its seconds alone.
    records = [record for run in runs for record in run.records]
    alike = {json.dumps(record | {"seconds": 0}, sort_keys=True): record for record in records}
    lines = ["", f"## {runs[0].notebook}", ""]
    lines += tables.markdown(runs[0].notebook, about, list(alike.values()))
    for run in runs:
        seeds = sorted({record["seed"] for record in run.records})
        facts = {"profile": run.run.get("profile"), "seeds": seeds} | _facts(run)
        facts["scores"] = run.protocol
        text = ", ".join(f"{name} {fact}" for name, fact in facts.items() if fact)
        lines.append(f"- {run.name}: {text}")
        for claim in run.claims:
            sides = f"(paper {claim['paper']}; ours: {claim['ours']})"
            lines.append(f"  - {claim['sentence']}: **{claim['status']}** {sides}")
    return lines


def _cell(value):
    return json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value


def long_table(runs: list[Finished]) -> pandas.DataFrame:
    """Every record of every run, a row a score; also of runs that the report leaves out.

    Columns: run and notebook; the record's own; `param_*`, parameters that differ in a notebook;
    `about_*`, birth certificate, seconds and memory; protocol. Lists and dictionaries are JSON.
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
    beside["protocol"] = [run.protocol for run in runs]
    records = pandas.DataFrame([one | {"run": run.name} for run in runs for one in run.records])
    return names.merge(records, on="run").merge(beside, on="run")


def write(profile: str) -> str:
    """Write report.md and all records into runs/PROFILE; its path. FileNotFoundError for no run."""
    home = plan.home()
    plan.check_profile(home, profile, stored=True)
    folder = home / "runs" / profile
    found = finished.read(folder)
    if not found:
        raise FileNotFoundError(f"no finished run of {profile}: {START} {profile}`")
    scores = long_table(found)
    certificate.write(folder / "results.csv", scores.to_csv(index=False))
    for name in scores:
        # Parquet has one type a column: where runs gave texts and numbers, all become text.
        if scores[name].dropna().map(type).nunique() > 1:
            scores[name] = scores[name].map(str, na_action="ignore")
    certificate.write(folder / "results.parquet", scores.to_parquet(index=False))
    try:
        runs = audit.results(folder)
        verdicts = audit.page(audit.judge(runs), runs)
    except ValueError as error:
        verdicts = [f"Not judged: {error}."]
    lines = [f"# Profile {profile}: results beside the paper's", ""]
    lines += ["## Every claim with its verdict", "", *verdicts, ""]
    lines += ["Below, rows in italics are the paper's numbers, made with its own models and data."]
    lines += ["Compare sign and order, not size."]
    lines += ["All records of all runs, one a row: results.csv, results.parquet."]
    planned = finished.planned(folder, found)
    stale = [run.name for run in found if run not in planned]
    if stale:
        lines.append(f"Left out, for the params files make no such run: {', '.join(stale)}.")
    if changed := ", ".join(finished.changed(folder, planned)):
        lines.append(f"Not made with the parameters of the params files: {changed}.")
    for notebook in sorted({run.notebook for run in planned}):
        lines += _section([run for run in planned if run.notebook == notebook])
    certificate.write(folder / "report.md", "\n".join(lines) + "\n")
    return os.path.relpath(folder / "report.md")


def copy_figures(profile: str) -> tuple[int, str]:
    """Copy planned figures and verdicts: (files, folder). Raises FileNotFoundError for none."""
    home = plan.home()
    plan.check_profile(home, profile, stored=True)
    folder, target = home / "runs" / profile, home / "figures" / profile
    found = finished.read(folder)
    planned = finished.planned(folder, found)
    stale = [run for run in found if run not in planned]
    left_out = {file for run in stale for file in finished.figures(folder, run.name, run.run)}
    source = folder / "figures"
    files = [file for file in source.rglob("[!.]*") if file.is_file() and file not in left_out]
    if not files:
        raise FileNotFoundError(f"no figures of {profile}: {START} {profile}`")
    copy({file: target / file.relative_to(source) for file in files})
    if (target / "verdicts.csv").is_file():
        audit.write(profile)
    return len(files), os.path.relpath(target)
