"""Every claim of the paper with its verdict, from the results of one profile. `claims.yaml` holds
the claims, no verdicts.

A verdict is counted from records, pair by pair, and compared with what the notebook printed; where
the two differ, or where scores are impossible, lack their control or come from two profiles,
nothing is judged: ValueError says which run it is.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from prehab_lib.report import arithmetic, finished, pairs, paper
from prehab_lib.report.finished import Finished
from prehab_lib.report.pairs import Pair
from prehab_lib.runs import plan

GROUPS = {
    "paper": "What the paper claims",
    "sums": "Its own arithmetic",
    "control": "What its tables leave out: the control, λ = 0",
    "rivals": "Other papers, and its future work",
}
NO_CONTROL = "no control"
_FILE = Path(__file__).with_name("claims.yaml")


@dataclass(frozen=True)
class Evidence:
    """What decides a claim: a sentence a notebook prints, a comparison of its records, or both."""

    notebook: str
    sentence: str = ""
    records: Pair | None = None


@dataclass(frozen=True)
class Claim:
    """One entry of claims.yaml."""

    id: str
    group: str
    where: str
    says: str
    paper: str = ""
    evidence: tuple[Evidence, ...] = ()
    arithmetic: str = ""
    not_tested: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim judged: held of cases, (0, 0) where nothing decides it.

    missing: notebooks that have not run. differs: how its runs were made otherwise than most.
    """

    claim: Claim
    paper: str
    ours: str = ""
    held: int = 0
    cases: int = 0
    of: str = ""
    missing: tuple[str, ...] = ()
    differs: str = ""

    @property
    def status(self) -> str:
        """A key of `verdicts.STATUSES`; rarely is at half or fewer."""
        if self.claim.not_tested:
            return "not tested here"
        if not self.cases:
            return "not run"
        if self.held in (0, self.cases):
            return "holds" if self.held else "does not hold"
        return "mostly" if 2 * self.held > self.cases else "rarely"

    @property
    def text(self) -> str:
        """The verdict in words."""
        if self.claim.not_tested:
            return f"{self.status}: {self.claim.not_tested}"
        if not self.cases:
            return self.status
        begin = f"holds at {self.held}" if self.held else "does not hold: 0"
        return f"{begin} of {self.cases} {self.of}".rstrip()


class _Count(NamedTuple):
    held: int
    cases: int
    of: str


def _claim(id: str, group: str, fields: dict) -> Claim:
    entries = fields.get("evidence", [])
    evidence = []
    for entry in [entries] if isinstance(entries, dict) else entries:
        records = Pair.of(entry["records"]) if "records" in entry else None
        evidence.append(Evidence(**(entry | {"records": records})))
    return Claim(id, group, **(fields | {"evidence": tuple(evidence)}))


@cache
def claims() -> tuple[Claim, ...]:
    """The claims, in the order of the page."""
    claims = []
    for group, some in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items():
        claims += [_claim(id, group, fields) for id, fields in some.items()]
    return tuple(claims)


def beside() -> Path | None:
    """The folder of the profile that a notebook runs in, runs/PROFILE; None outside a run."""
    folder = os.environ.get("PREHAB_RUNS")
    return Path(folder) if folder else None


def results(folder: Path | str | None) -> list[Finished]:
    """The finished runs of runs/PROFILE that its params files ask for; none where folder is None.

    Raises ValueError where they are of more than one profile.
    """
    if folder is None:
        return []
    folder = Path(folder).resolve()
    by_notebook = finished.read(folder)
    runs = [run for several in by_notebook.values() for run in several]
    mixed = {name: run.name for run in runs for name in run.profiles}
    if set(mixed) - {folder.name}:
        which = ", ".join(f"{run} is of {name}" for name, run in sorted(mixed.items()))
        remedy = f"remove what is not of {folder.name}"
        raise ValueError(f"runs/{folder.name} mixes profiles ({which}): {remedy}")
    planned = plan.expected(plan.home(), folder.name, by_notebook)
    return [run for run in runs if run.name in planned.get(run.notebook, [run.name])]


def _lines(evidence: Evidence, run: Finished, datasets: Iterable[str] = ()) -> list[dict]:
    """What the run printed under this sentence; {dataset} stands for each of the data sets."""
    sentences = [evidence.sentence]
    if "{dataset}" in evidence.sentence:
        sentences = [evidence.sentence.replace("{dataset}", dataset) for dataset in datasets]
    lines = [(line, sentence) for sentence in sentences for line in run.claims]
    return [line for line, sentence in lines if fnmatchcase(line["sentence"], sentence)]


def _judge(evidence: Evidence, run: Finished) -> _Count | None:
    """The count of one run; None where it says nothing of this.

    Raises ValueError where its records and what it printed differ.
    """
    places: dict[tuple, bool] = {}
    if evidence.records:
        try:
            places = pairs.compare(run.records, evidence.records)
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None
    datasets = sorted({dataset for dataset, *_ in places})
    lines = _lines(evidence, run, datasets) if evidence.sentence else []
    printed = [case for line in lines for case in line["each"]]
    counted = list(places.values())
    if evidence.records and lines and printed != counted:
        raise ValueError(
            f'{run.name}: "{evidence.sentence}" was printed as {sum(printed)} of {len(printed)}, '
            f"but its records give {sum(counted)} of {len(counted)}, or other cases: result.json "
            "or claims.jsonl was changed; run it again"
        )
    if places:
        return _counted(places)
    return _Count(sum(printed), len(printed), lines[0]["of"]) if lines else None


def _counted(places: dict[tuple, bool]) -> _Count:
    return _Count(sum(places.values()), len(places), pairs.cases(places))


def _total(counts: list[_Count]) -> _Count:
    units = {count.of for count in counts}
    of = units.pop() if len(units) == 1 else "cases"
    return _Count(sum(count.held for count in counts), sum(count.cases for count in counts), of)


def _paper_says(claim: Claim) -> str:
    """The paper's side: its words, or its own count of the same pairs."""
    if claim.paper:
        return claim.paper
    if claim.group == "control":
        return NO_CONTROL
    comparisons = [evidence.records for evidence in claim.evidence if evidence.records]
    if not comparisons:
        return "printed"
    total = _total([_counted(pairs.compare(pairs.printed(), pair)) for pair in comparisons])
    return f"at {total.held} of {total.cases} {total.of}"


def _ours(claim: Claim, runs: list[Finished]) -> str:
    """Model, data and seeds behind records that decided; behind sentences, what those say."""
    data: dict[tuple, dict] = {}
    said: dict[str, None] = {}
    for run in runs:
        evidence = [entry for entry in claim.evidence if entry.notebook == run.notebook]
        if any(entry.records for entry in evidence):
            seeds = len({record["seed"] for record in run.records})
            key = (run.about.get("model", "model not recorded"), seeds)
            data.setdefault(key, {})[run.about.get("data", "data not recorded")] = None
        else:
            lines = [line for entry in evidence for line in _lines(entry, run)]
            said |= {line["ours"]: None for line in lines}
    scored = []
    for (model, seeds), sets in data.items():
        plural = "s" if seeds > 1 else ""
        scored.append(f"{model}, {', '.join(sets)}, {seeds} seed{plural}")
    return "; ".join([*scored, *said])


def _verdict(claim: Claim, runs: list[Finished], most: dict[str, str]) -> Verdict:
    says = _paper_says(claim)
    if claim.arithmetic:
        checks = arithmetic.CHECKS[claim.arithmetic](paper.records())
        agree = sum(check.agrees for check in checks)
        return Verdict(claim, says, "recomputed", agree, len(checks), "numbers")
    counts, behind, missing = [], {}, {}
    for evidence in claim.evidence:
        judged = [(run, _judge(evidence, run)) for run in runs if run.notebook == evidence.notebook]
        judged = [(run, count) for run, count in judged if count]
        several = "runs × " if len(judged) > 1 else ""
        counts += [count._replace(of=several + count.of) for _, count in judged]
        behind |= {run.name: run for run, _ in judged}
        missing |= {} if judged else {evidence.notebook: None}
    total = _total(counts) if counts else (0, 0, "")
    made_by = list(behind.values())
    ours, differs = _ours(claim, made_by), finished.differing(made_by, most)
    return Verdict(claim, says, ours, *total, tuple(missing), differs)


def judge(runs: list[Finished]) -> list[Verdict]:
    """Every claim with its verdict, from runs of one profile, in the order of claims.yaml.

    Raises ValueError where the paper's tables were changed, or a run's scores cannot be judged,
    naming the run.
    """
    arithmetic.verify()
    for run in runs:
        pairs.check(run.name, run.records)
    most = finished.usual(runs)
    return [_verdict(claim, runs, most) for claim in claims()]
