"""Every claim of `claims.yaml` with its verdict: for the report, notebook 10 and verdicts.md.

A verdict is counted from records, pair by pair. ValueError names a run whose notebook printed
another count, or whose scores are impossible, lack their control or come from two profiles.
"""

import os
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pandas
import yaml

from prehab_lib.report import arithmetic, finished, pairs, paper
from prehab_lib.report.claims import verdict
from prehab_lib.report.finished import Finished
from prehab_lib.runs import certificate, plan

GROUPS = {"paper": "What the paper claims", "sums": "Its own arithmetic"}
GROUPS |= {"control": "What its tables leave out: the control, λ = 0"}
GROUPS |= {"rivals": "Other papers, and its future work"}
DECIDED = {"holds": "holds in every case", "mostly": "in more than half of them"}
DECIDED |= {"rarely": "in half or fewer", "does not hold": "in none"}
STATUSES = DECIDED | {"not run": "not run", "not tested here": "not tested here"}


@cache
def claims() -> tuple[dict, ...]:
    """The entries of claims.yaml with id, group and a list of evidence, in its order."""
    text = Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8")
    entries = []
    for group, some in yaml.safe_load(text).items():
        entries += [{"id": id, "group": group, "evidence": []} | some[id] for id in some]
    return tuple(entries)


def beside() -> Path | None:
    """The folder of the profile that a notebook runs in, runs/PROFILE; None outside a run."""
    folder = os.environ.get("PREHAB_RUNS")
    return Path(folder) if folder else None


def results(folder: Path | str | None) -> list[Finished]:
    """The planned runs in runs/PROFILE; none for None. Raises ValueError where profiles mix."""
    if folder is None:
        return []
    folder = Path(folder).resolve()
    runs = finished.read(folder)
    mixed = sorted({(name, run.name) for run in runs for name in run.profiles - {folder.name}})
    if mixed:
        which = ", ".join(f"{run} is of {name}" for name, run in mixed)
        mixes = f"runs/{folder.name} mixes profiles ({which})"
        raise ValueError(f"{mixes}: remove what is not of {folder.name}")
    return finished.planned(folder, runs)


def _lines(sentence: str, run: Finished, datasets: Iterable[str] = ()) -> list[dict]:
    """What the run printed under this sentence; {dataset} stands for each of the data sets."""
    names = datasets if "{dataset}" in sentence else [""]
    wanted = [sentence.replace("{dataset}", name) for name in names]
    return [line for one in wanted for line in run.claims if fnmatchcase(line["sentence"], one)]


def _judge(evidence: dict, run: Finished) -> tuple[list[bool], str]:
    """In which cases of one run it holds, and what these are; no case where it says nothing."""
    sentence, places = evidence.get("sentence"), {}
    if "records" in evidence:
        try:
            places = pairs.compare(run.records, evidence["records"])
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None
    datasets = sorted({dataset for dataset, *_ in places})
    lines = _lines(sentence, run, datasets) if sentence else []
    printed = [case for line in lines for case in line["each"]]
    counted = list(places.values())
    if "records" in evidence and lines and printed != counted:
        said = f'"{sentence}" was printed as {sum(printed)} of {len(printed)}'
        give = f"its records give {sum(counted)} of {len(counted)}, or other cases"
        remedy = "result.json or claims.jsonl was changed; run it again"
        raise ValueError(f"{run.name}: {said}, but {give}: {remedy}")
    if places:
        return counted, pairs.cases(places)
    return printed, lines[0]["of"] if lines else ""


def _paper_says(claim: dict) -> str:
    """The paper's side: its words, or its own count of the same pairs."""
    if "paper" in claim:
        return claim["paper"]
    printed, entries = pairs.printed(), claim["evidence"]
    found = [pairs.compare(printed, entry["records"]) for entry in entries if "records" in entry]
    held = [case for places in found for case in places.values()]
    return f"at {sum(held)} of {len(held)} {_unit({pairs.cases(places) for places in found})}"


def _unit(units: set[str]) -> str:
    return next(iter(units)) if len(units) == 1 else "cases"


def _ours(claim: dict, runs: list[Finished]) -> str:
    """Model, data and seeds behind records that decided; behind sentences, what those say."""
    scored: dict[tuple, dict] = {}
    said: dict[str, None] = {}
    for run in runs:
        evidence = [entry for entry in claim["evidence"] if entry["notebook"] == run.notebook]
        if any("records" in entry for entry in evidence):
            count = len({record["seed"] for record in run.records})
            about = {"model": "model not recorded", "data": "data not recorded"} | run.about
            seeds = f"{count} seed{'s' * (count > 1)}"
            scored.setdefault((about["model"], seeds), {})[about["data"]] = None
        else:
            lines = [line for entry in evidence for line in _lines(entry["sentence"], run)]
            said |= {line["ours"]: None for line in lines}
    models = [f"{model}, {', '.join(data)}, {seeds}" for (model, seeds), data in scored.items()]
    return "; ".join([*models, *said])


def _in_words(claim: dict, held: int, cases: int, of: str) -> tuple[str, str]:
    """The verdict, and its status, a key of STATUSES; rarely is at half or fewer."""
    if "not_tested" in claim:
        return f"not tested here: {claim['not_tested']}", "not tested here"
    if not cases:
        return "not run", "not run"
    status = "does not hold"
    if held:
        status = "holds" if held == cases else "mostly" if held > cases / 2 else "rarely"
    return verdict(held, cases, of), status


def _verdict(claim: dict, runs: list[Finished], most: dict[str, str]) -> dict:
    """The row of one claim, as `judge` gives it. most: with what most runs were made."""
    cases, units, behind, missing = [], set(), {}, {}
    for evidence in claim["evidence"]:
        of_notebook = [run for run in runs if run.notebook == evidence["notebook"]]
        judged = [(run, *_judge(evidence, run)) for run in of_notebook]
        decided = [row for row in judged if row[1]]
        for run, held, of in decided:
            cases += held
            units.add(f"runs × {of}" if len(decided) > 1 else of)
            behind[run.name] = run
        if not decided:
            missing[evidence["notebook"]] = None
    made_by = list(behind.values())
    ours = _ours(claim, made_by)
    if "arithmetic" in claim:
        checks = arithmetic.CHECKS[claim["arithmetic"]](paper.records())
        cases, units, ours = [check.agrees for check in checks], {"numbers"}, "recomputed"
    words, status = _in_words(claim, sum(cases), len(cases), _unit(units))
    row = {name: claim[name] for name in ("id", "group", "where", "says")}
    row |= {"paper": _paper_says(claim), "ours": ours, "verdict": words, "status": status}
    row |= {"held": sum(cases), "cases": len(cases), "missing": ", ".join(missing)}
    return row | {"differs": finished.differing(made_by, most)}


def judge(runs: list[Finished]) -> pandas.DataFrame:
    """Every claim with its verdict, from runs of one profile, in the order of claims.yaml.

    Columns: id, group, where, says, paper, ours, verdict, status, held, cases, missing (notebooks
    that have not run), differs (how its runs were made otherwise than most). Raises ValueError
    where the paper's tables were changed, or a run's scores cannot be judged, naming the run.
    """
    arithmetic.verify()
    for run in runs:
        pairs.check(run.name, run.records)
    most = finished.usual(runs)
    return pandas.DataFrame([_verdict(claim, runs, most) for claim in claims()])


def counted(statuses) -> str:
    """How many claims have which verdict, in one line."""
    counts = Counter(statuses)
    parts = [f"{words} {counts[status]}" for status, words in STATUSES.items() if counts[status]]
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
    incomplete = (table.missing != "") & (table.cases > 0)
    without = ("; without " + table.missing).where(incomplete, "")
    table = table.assign(verdict="**" + table.verdict + "**" + without)
    sides = {"paper": "the paper", "ours": "here", "verdict": "verdict"}
    return lines + _table(table, where="where", says="claim", **sides, differs="made otherwise")


def text(table: pandas.DataFrame, profile: str) -> str:
    """The claims that are decided, as a page of Markdown, and how many are not."""
    lines = [f"# The paper's claims, and what the {profile} profile says of them", ""]
    lines += ["Made from verdicts.csv beside this file by `python -m prehab_lib verdicts`.", ""]
    heads = {"paper": "the paper", "verdict": f"{profile} profile"}
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
