"""All results of a profile on one page, ours beside the paper's: `python -m prehab_lib report
PROFILE`.
"""

import json
import os
from pathlib import Path

from prehab_lib.report import audit, results, tables, verdicts
from prehab_lib.report.finished import Finished, read
from prehab_lib.runs import plan
from prehab_lib.runs.store import Store, copy, replacing


def _maker(finished: Finished) -> str:
    """Which profile, seeds, device, versions and commit made the numbers of a run."""
    about, seeds = finished.about, sorted({record["seed"] for record in finished.records})
    facts = [
        f"profile {finished.run.get('profile', '?')}",
        f"seeds {', '.join(map(str, seeds))}" if seeds else "",
        f"{about['device']} ({about['device_name']}), {about['threads']} threads"
        if "device" in about
        else "",
        ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()),
        f"commit {about['commit']}" if about.get("commit") else "",
    ]
    return " | ".join(filter(None, facts))


def _cost(finished: Finished) -> str:
    """In what time and memory, and when."""
    run, about = finished.run, finished.about
    memory = f"{run.get('peak_memory_mb', '?')} MB"
    if str(about.get("device", "")).startswith("cuda"):
        memory += f", {about.get('peak_memory_mb', '?')} MB on the device"
    started = f" | started {run['started']}" if "started" in run else ""
    return f"{run.get('seconds', '?')} s, {memory}{started}"


def _certificates(runs: list[Finished]) -> list[str]:
    if len(runs) == 1:
        return [f"Made by: {_maker(runs[0])} | {_cost(runs[0])}", ""]
    return [
        *_several(runs, "Made by", _maker),
        *(f"- {run.label}: {_cost(run)}" for run in runs),
        "",
    ]


def _claim_lines(runs: list[Finished]) -> list[str]:
    """A line for each claim; one that several runs make is counted over all of them, and each run's
    part named.
    """
    made: dict[tuple, list[tuple[str, dict]]] = {}
    for run in runs:
        for number, claim in enumerate(run.claims):
            same = (claim["sentence"], claim["paper"], claim["of"])
            before = sum(
                same == (claim["sentence"], claim["paper"], claim["of"])
                for claim in run.claims[:number]
            )
            made.setdefault((*same, before), []).append((run.label, claim))
    return [_claim_line(each, alone=len(runs) == 1) for each in made.values()]


def _claim_line(each: list[tuple[str, dict]], alone: bool) -> str:
    claims = [claim for _, claim in each]
    holds, cases = sum(claim["holds"] for claim in claims), sum(claim["cases"] for claim in claims)
    counted = f"{cases} {claims[0]['of']}".strip()
    verdict = f"holds at {holds} of {counted}" if holds else f"does not hold: 0 of {counted}"
    parts = "; ".join(f"{label} {claim['holds']} of {claim['cases']}" for label, claim in each)
    apart = (
        f" over {len(each)} runs: {parts}"
        if len(each) > 1
        else ""
        if alone
        else f" in {each[0][0]}"
    )
    ours = "; ".join(dict.fromkeys(claim["ours"] for claim in claims))
    return f"- {claims[0]['sentence']}: **{verdict}**{apart} (paper {claims[0]['paper']}; ours: {ours})"


def _once(runs: list[Finished]) -> list[dict]:
    """The records of all runs. One that several runs share, equal in all but its seconds, is one
    measurement.
    """
    kept: list[dict] = []
    seen: set[str] = set()
    for run in runs:
        texts = [json.dumps(record | {"seconds": 0}, sort_keys=True) for record in run.records]
        kept += [
            record for record, text in zip(run.records, texts, strict=True) if text not in seen
        ]
        seen.update(texts)
    return kept


def _merged(runs: list[Finished]) -> dict:
    """What the tables say about the runs behind them."""
    values = {
        name: dict.fromkeys(run.about[name] for run in runs if name in run.about)
        for name in ("model", "data")
    }
    return {name: ", ".join(map(str, several)) for name, several in values.items() if several}


def _several(runs: list[Finished], what: str, text) -> list[str]:
    """Lines `what: text`, one where all runs say the same, else one for each."""
    told: dict[str, list[str]] = {}
    for run in runs:
        told.setdefault(text(run), []).append(run.label)
    if len(told) == 1:
        return [f"{what}: {next(iter(told))}", ""]
    return [*(f"- {what} ({', '.join(labels)}): {line}" for line, labels in told.items()), ""]


def _choose(
    notebook: str, profile: str, runs: list[Finished], planned: dict[str, dict]
) -> tuple[list[Finished], list[str]]:
    """The finished runs that the plan has, in its order, and lines on what differs from it.
    planned: run -> parameters.
    """
    by_name, lines, file = {run.name: run for run in runs}, [], f"params/{notebook}.{profile}.yaml"
    chosen = [by_name[name] for name in planned if name in by_name]
    if outside := [name for name in by_name if name not in planned]:
        lines += [f"Left out, for {file} as it stands makes no such run: {', '.join(outside)}.", ""]
    if missing := [name for name in planned if name not in by_name]:
        lines += [f"Not there yet: {', '.join(missing)}.", ""]
    for run in (
        chosen if len(planned) > 1 else []
    ):  # in one table with its siblings, which it must be like
        had = run.run.get("params", {})
        other = [
            f"{name} = {had[name]!r}"
            for name, value in planned[run.name].items()
            if had.get(name, value) != value
        ]
        if other:
            lines += [
                f"{run.name} was run with {', '.join(other)}, which is not what {file} says now.",
                "",
            ]
    return chosen, lines


def _section(notebook: str, runs: list[Finished]) -> tuple[list[str], list[tables.Table]]:
    """Lines on the runs of one notebook, and the tables printed there."""
    made = tables.tables(notebook, _merged(runs), _once(runs))
    lines = []
    for table in made:
        numbers = [] if table.refusal else [f"Numbers: tables/{table.name}.csv", ""]
        lines += [f"### {table.title}", "", *tables.markdown(table), "", *numbers]
    if scored := [run for run in runs if run.result]:
        lines += _several(scored, "Protocol", lambda run: run.result["protocol"])
    if claims := _claim_lines(runs):
        lines += ["Claims (compare sign and order, not size):", "", *claims, ""]
    return lines + _certificates(runs), [table for table in made if not table.refusal]


def _write_tables(folder: Path, printed: list[tables.Table]) -> None:
    """A CSV for each table; those of earlier reports go."""
    names = {f"{table.name}.csv" for table in printed}
    for file in folder.glob("*.csv"):
        if file.name not in names:
            file.unlink()
    for table in printed:
        with replacing(folder / f"{table.name}.csv") as draft:
            table.cells.to_csv(draft, index=False)


def _verdicts(folder: Path) -> list[str]:
    """The page of notebook 10, made from what lies in the folder now; or the sentence that says why
    it cannot be.
    """
    try:
        runs = audit.results(folder)
        return verdicts.page(audit.judge(runs), runs)
    except ValueError as error:
        return [f"Not judged: {error}."]


def write(profile: str, home: Path | None = None) -> str:
    """Write runs/PROFILE/report.md, a CSV for each table, and all records in one; returns the
    report's path, relative.

    Raises FileNotFoundError where the profile has no finished run.
    """
    home = home or plan.home()
    folder = home / "runs" / profile
    finished = read(folder)
    if not finished:
        raise FileNotFoundError(
            f"no finished run of {profile}: start with `python -m prehab_lib run {profile}`"
        )
    planned = plan.expected(home, profile, finished)
    lines = [f"# Profile {profile}: results beside the paper's", ""]
    lines += ["## Every claim with its verdict", "", *_verdicts(folder), ""]
    lines += [
        "Below, rows in italics are the paper's numbers, made with its own models and data.",
        "",
    ]
    if results.write(folder, finished):
        lines += [
            f"All records of all runs, one a row: {results.NAME}.csv, {results.NAME}.parquet",
            "",
        ]
    printed = []
    for notebook, runs in sorted(finished.items()):
        lines += [f"## {notebook}", ""]
        if notebook in planned:
            runs, differences = _choose(notebook, profile, runs, planned[notebook])
            lines += differences
        else:
            lines += ["There is no such notebook any more: this is what it left.", ""]
        if runs:
            told, made = _section(notebook, runs)
            lines += told
            printed += made
    _write_tables(folder / "tables", printed)
    with replacing(folder / "report.md") as draft:
        draft.write_text("\n".join(lines), encoding="utf-8")
    return os.path.relpath(folder / "report.md")


def copy_figures(profile: str, home: Path | None = None) -> tuple[int, str]:
    """Copy runs/PROFILE/figures to figures/PROFILE, but not those of runs that the plan has no
    more.

    Returns the number of files and the folder, relative. Raises FileNotFoundError where the profile
    has made no figure.
    """
    home = home or plan.home()
    source, target, store = (
        home / "runs" / profile / "figures",
        home / "figures" / profile,
        Store(home / "runs"),
    )
    left_out = {
        file
        for name in store.outside(
            profile, plan.expected(home, profile, read(home / "runs" / profile))
        )
        for file in store.targets(profile, name, store.published(profile, name)).values()
    }
    files = sorted(
        file for file in source.rglob("*") if file.is_file() and not file.name.startswith(".")
    )
    files = [file for file in files if file not in left_out]
    if not files:
        raise FileNotFoundError(
            f"no figures of {profile}: start with `python -m prehab_lib run {profile}`"
        )
    for file in files:
        copy(file, target / file.relative_to(source))
    return len(files), os.path.relpath(target)
