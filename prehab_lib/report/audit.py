"""Every claim of `claims.yaml` with its verdict: for the report, notebook 10 and verdicts.md.

ValueError names a run whose scores are impossible, lack their control or come from two profiles.
"""

import os
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pandas

from prehab_lib.report import arithmetic, finished, pairs, paper, verdicts
from prehab_lib.report.finished import Finished
from prehab_lib.report.verdicts import DECIDED, EMPTY, GROUPS, STATUSES, claims
from prehab_lib.runs import certificate, plan

COLUMNS = ["id", "group", "where", "says", "paper", "ours", "verdict", "status"]
COLUMNS += ["mean", "low", "high", "unit", "seeds", "removed", "paper_effect", "visible", "differs"]


def beside() -> Path | None:
    """The folder of the profile that a notebook runs in, runs/PROFILE; None outside a run."""
    folder = os.environ.get("PREHAB_RUNS")
    return Path(folder) if folder else None


def results(folder: Path | str | None) -> list[Finished]:
    """The planned runs in runs/PROFILE; none for None. Raises ValueError where profiles mix."""
    if folder is None:
        return []
    folder = Path(folder).absolute()  # a link keeps its name, which is the profile's
    runs = finished.read(folder)
    mixed = sorted({(name, run.name) for run in runs for name in run.profiles - {folder.name}})
    if mixed:
        which = ", ".join(f"{run} is of {name}" for name, run in mixed)
        mixes = f"runs/{folder.name} mixes profiles ({which})"
        raise ValueError(f"{mixes}: remove what is not of {folder.name}")
    return finished.planned(folder, runs)


def _on_records(claim: dict, runs: list[Finished]) -> dict:
    """Verdict, both sides and the runs behind it, of a claim that records decide."""
    behind, parts = [], []
    for run in runs:
        try:
            found = pairs.differences(run.records, run.curves, claim["records"])
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None
        if len(found):
            parts.append(found)
            behind.append(run)
    row = verdicts.verdict(claim, pandas.concat(parts) if parts else pandas.DataFrame())
    models: dict[str, dict] = {}
    for run in behind:
        about = {"model": "model not recorded", "data": "data not recorded"} | run.about
        models.setdefault(about["model"], {})[about["data"]] = None
    ours = "; ".join(f"{model}, {', '.join(data)}" for model, data in models.items())
    if row["seeds"]:
        ours += f", {row['seeds']} seeds, {row['removed']:.0%} removed"
    return row | {"ours": ours, "runs": behind}


def _on_sentence(claim: dict, runs: list[Finished]) -> dict:
    """Verdict, our side and the runs behind it, of a check that a notebook printed."""
    lines, behind = [], []
    for run in runs:
        printed = [one for one in run.claims if fnmatchcase(one["sentence"], claim["check"])]
        lines += printed
        if printed:
            behind.append(run)
    status = "not run"
    if lines:
        status = "passes" if all(line["status"] == "passes" for line in lines) else "fails"
    ours = "; ".join(dict.fromkeys(line["ours"] for line in lines))
    return {"status": status, "verdict": status, "ours": ours, "runs": behind}


def _on_sums(claim: dict) -> dict:
    """Verdict and our side of one of the paper's own sums; those that differ are named."""
    checks = arithmetic.CHECKS[claim["arithmetic"]](paper.records())
    places = [check.place for check in checks if not check.agrees]
    wrong = [
        "Table " + ", ".join(f"{part:.0%}" if isinstance(part, float) else part for part in place)
        for place in places
    ]
    ours = f"recomputed: {len(checks)}"
    if wrong:
        return {"status": "fails", "verdict": f"fails: {'; '.join(wrong)}", "ours": ours}
    return {"status": "passes", "verdict": "passes", "ours": ours}


def _verdict(claim: dict, runs: list[Finished], most: dict[str, str]) -> dict:
    """The row of one claim, as `judge` gives it. most: with what most runs were made."""
    of_notebook = [run for run in runs if run.notebook == claim.get("notebook")]
    row = EMPTY | {"paper": "printed", "ours": "", "runs": []}
    if "records" in claim:
        row |= _on_records(claim, of_notebook)
    elif "check" in claim:
        row |= _on_sentence(claim, of_notebook)
    elif "arithmetic" in claim:
        row |= _on_sums(claim)
    else:
        words = f"not tested here: {claim['not_tested']}"
        row |= {"status": "not tested here", "verdict": words}
    row |= claim | {"differs": finished.differing(row["runs"], most)}
    return {name: row[name] for name in COLUMNS}


def judge(runs: list[Finished]) -> pandas.DataFrame:
    """Every claim with its verdict, from runs of one profile, in the order of claims.yaml.

    Columns: id, group, where, says, paper, ours, verdict, status; of an effect mean, low, high,
    unit, seeds, removed, paper_effect, visible (half the interval); differs (how its runs were made
    otherwise than most). Raises ValueError where the paper's tables were changed, or a run's scores
    cannot be judged, naming the run.
    """
    arithmetic.verify()
    for run in runs:
        pairs.check(run.name, run.records)
    most = finished.usual(runs)
    return pandas.DataFrame([_verdict(claim, runs, most) for claim in claims()])


def counted(statuses) -> str:
    """How many claims have which status, in one line."""
    counts = Counter(statuses)
    parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
    return f"{counts.total()} claims: {', '.join(parts)}."


def _table(table: pandas.DataFrame, **heads: str) -> list[str]:
    """A Markdown table, its groups told apart by a line in bold. heads: column -> what heads it."""
    rows = [list(heads.values())]
    for group, some in table.groupby("group", sort=False)[list(heads)]:
        rows.append([f"**{GROUPS[group]}**", *[""] * (len(heads) - 1)])
        rows += some.to_numpy().tolist()
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def page(table: pandas.DataFrame, runs: list[Finished]) -> list[str]:
    """Lines of Markdown: every claim, both sides and the verdict. table: `judge` of these runs."""
    lines = [counted(table.status), ""]
    most = ", ".join(map(" ".join, finished.usual(runs).items()))
    if most:
        most += "; the last column says where a row's were not."
        lines += [f"Most runs were made with {most}", ""]
    bold = table.verdict.str.replace("^([^:]*)", r"**\1**", regex=True)  # the status alone
    table = table.assign(verdict=bold)
    sides = {"paper": "the paper", "ours": "here", "verdict": "verdict"}
    return lines + _table(table, where="where", says="claim", **sides, differs="made otherwise")


def text(table: pandas.DataFrame, profile: str) -> str:
    """The claims that are decided, as a page of Markdown, and how many are not."""
    lines = [f"# The paper's claims, and what the {profile} profile says of them", ""]
    lines += ["Made from verdicts.csv beside this file by `python -m prehab_lib verdicts`.", ""]
    lines += [f"- **{status}**: {words}" for status, words in DECIDED.items()]
    lines += ["", "Intervals are 95 %, over seeds. A ratio point is one per cent of the weights"]
    lines += ["that could be removed on top at the same score.", ""]
    heads = {"paper": "the paper", "verdict": f"{profile} profile", "ours": "on"}
    decided = table[table.status.isin(DECIDED)]
    lines += _table(decided, where="where", says="sentence", **heads)
    return "\n".join([*lines, "", f"Of {counted(table.status)}", ""])


def write(profile: str) -> str:
    """Make verdicts.md of verdicts.csv; gives its path. Raises FileNotFoundError without it."""
    plan.check_profile(plan.home(), profile, stored=True)
    folder = plan.home() / "figures" / profile
    if not (folder / "verdicts.csv").is_file():
        remedy = f"run {profile} 10, then `python -m prehab_lib figures {profile}`"
        raise FileNotFoundError(f"there is no figures/{profile}/verdicts.csv: {remedy}")
    table = pandas.read_csv(folder / "verdicts.csv", keep_default_na=False)
    certificate.write(folder / "verdicts.md", text(table, profile))
    return os.path.relpath(folder / "verdicts.md")
