"""All results of a profile on one page, ours beside the paper's: `python -m prehab_lib report PROFILE`."""

import json
import os
from pathlib import Path

from prehab_lib import plan, tables
from prehab_lib.store import copy


def _json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        raise ValueError(f"{file} is not JSON: remove its folder and run the profile again") from None


def _claims(folder: Path) -> list[dict]:
    file = folder / "claims.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def certificate(run: dict, about: dict, records: list[dict]) -> str:
    """One line: which profile, seeds, device, versions and commit made these numbers, in what time and memory."""
    seeds = sorted({record["seed"] for record in records})
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    memory = f"{run.get('peak_memory_mb', '?')} MB"
    if str(about.get("device", "")).startswith("cuda"):
        memory += f", {about.get('peak_memory_mb', '?')} MB on the device"
    facts = [
        f"profile {run.get('profile', '?')}",
        f"seeds {', '.join(map(str, seeds))}" if seeds else "",
        f"{about['device']} ({about['device_name']}), {about['threads']} threads" if "device" in about else "",
        versions,
        f"commit {about['commit']}" if about.get("commit") else "",
        f"{run.get('seconds', '?')} s, {memory}",
        f"started {run['started']}" if "started" in run else "",
    ]
    return "Made by: " + " | ".join(filter(None, facts))


def _claim_line(claim: dict) -> str:
    cases = f"{claim['cases']} {claim['of']}".strip()
    verdict = f"holds at {claim['holds']} of {cases}" if claim["holds"] else f"does not hold: 0 of {cases}"
    return f"- {claim['sentence']}: **{verdict}** (paper {claim['paper']}; ours: {claim['ours']})"


def _section(folder: Path, csv_folder: Path) -> list[str]:
    run, result, claims = _json(folder / "run.json"), _json(folder / "result.json"), _claims(folder)
    about, records = result.get("about", {}), result.get("records", [])
    lines = [f"## {folder.name}", ""]
    for table in tables.tables(folder.name, about, records):
        lines += [f"### {table.title}", "", *tables.markdown(table), ""]
        file = csv_folder / f"{table.name}.csv"
        if table.refusal:
            file.unlink(missing_ok=True)
        else:
            csv_folder.mkdir(parents=True, exist_ok=True)
            table.cells.to_csv(file, index=False)
            lines += [f"Numbers: {csv_folder.name}/{file.name}", ""]
    if result:
        lines += [f"Protocol: {result['protocol']}", ""]
    if claims:
        lines += ["Claims (compare sign and order, not size):", "", *map(_claim_line, claims), ""]
    return [*lines, certificate(run, about, records), ""]


def write(profile: str, home: Path | None = None) -> str:
    """Write runs/PROFILE/report.md and a CSV for each table; returns the report's path, relative.

    Raises FileNotFoundError where the profile has no finished run.
    """
    folder = (home or plan.home()) / "runs" / profile
    finished = sorted(file.parent for file in folder.glob("*/run.json"))
    if not finished:
        raise FileNotFoundError(f"no finished run of {profile}: start with `python -m prehab_lib run {profile}`")
    lines = [f"# Profile {profile}: results beside the paper's", ""]
    lines += ["Rows in italics are the paper's numbers, made with its own models and data.", ""]
    for run in finished:
        lines += _section(run, folder / "tables")
    report = folder / "report.md"
    draft = report.with_name(".report.md")
    draft.write_text("\n".join(lines), encoding="utf-8")
    os.replace(draft, report)
    return os.path.relpath(report)


def copy_figures(profile: str, home: Path | None = None) -> tuple[int, str]:
    """Copy runs/PROFILE/figures to figures/PROFILE. Returns the number of files and the folder, relative.

    Raises FileNotFoundError where the profile has made no figure.
    """
    home = home or plan.home()
    source, target = home / "runs" / profile / "figures", home / "figures" / profile
    files = sorted(file for file in source.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"no figures of {profile}: start with `python -m prehab_lib run {profile}`")
    for file in files:
        copy(file, target / file.relative_to(source))
    return len(files), os.path.relpath(target)
