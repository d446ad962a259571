"""Every claim of the paper with its verdict, from the results of one profile. `claims.yaml` holds
the claims, no verdicts.

A verdict is counted from records, pair by pair, and compared with what the notebook printed; where
the two differ, or where scores are impossible, lack their control or come from two profiles,
nothing is judged: ValueError says which run it is.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

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
    """What decides a claim: a sentence that a notebook prints, or a comparison of its records, or
    both.
    """

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
    """A claim judged. held of cases; (0, 0) where nothing decides it. missing: notebooks that have
    not run.

    differs: how versions or commit of its runs differ from those of most runs of the profile.
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
        """One of: holds, mostly, rarely (at half or fewer), does not hold, not run, not tested
        here.
        """
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
        if self.status in ("not run", "not tested here"):
            return self.status + (f": {self.claim.not_tested}" if self.claim.not_tested else "")
        return (
            f"holds at {self.held}" if self.held else "does not hold: 0"
        ) + f" of {self.cases} {self.of}".rstrip()


@dataclass(frozen=True)
class _Count:
    held: int
    cases: int
    of: str


def _claim(id: str, group: str, told: dict) -> Claim:
    def entry(one: dict) -> Evidence:
        return Evidence(**one | ({"records": Pair.of(one["records"])} if "records" in one else {}))

    try:
        evidence = told.get("evidence", [])
        evidence = tuple(
            entry(one) for one in ([evidence] if isinstance(evidence, dict) else evidence)
        )
        made = Claim(id, group, **told | {"evidence": evidence})
    except (TypeError, ValueError) as error:
        raise ValueError(f"claims.yaml: {id}: {error}") from None
    if sum(map(bool, (made.evidence, made.arithmetic, made.not_tested))) != 1:
        raise ValueError(f"claims.yaml: {id}: give one of evidence, arithmetic, not_tested")
    if made.arithmetic and made.arithmetic not in arithmetic.CHECKS:
        raise ValueError(f"claims.yaml: {id}: {made.arithmetic} is no check of arithmetic.py")
    return made


@cache
def claims() -> tuple[Claim, ...]:
    """The claims, in the order of the page. Raises ValueError naming an entry that is not one."""
    from prehab_lib.tasks.parameters import load_file

    groups = load_file(_FILE)
    if list(groups) != list(GROUPS):
        raise ValueError(f"claims.yaml: its groups must be {', '.join(GROUPS)}, in this order")
    return tuple(
        _claim(id, group, told) for group, some in groups.items() for id, told in some.items()
    )


def beside() -> Path | None:
    """The folder of the profile that a notebook runs in, runs/PROFILE; None outside a run of
    `python -m prehab_lib run`.
    """
    folder = os.environ.get("PREHAB_RUNS")
    return Path(folder) if folder else None


def results(folder: Path | str | None) -> list[Finished]:
    """The finished runs of a profile's folder, runs/PROFILE, that its params files ask for; none
    where folder is None.

    Raises ValueError where they are of more than one profile.
    """
    if folder is None:
        return []
    folder = Path(folder).resolve()
    found = finished.read(folder)
    runs = [run for several in found.values() for run in several]
    mixed = {name: run.name for run in runs for name in run.profiles}
    if set(mixed) - {folder.name}:
        told = ", ".join(f"{run} is of {name}" for name, run in sorted(mixed.items()))
        raise ValueError(
            f"runs/{folder.name} mixes profiles ({told}): remove what is not of {folder.name}"
        )
    planned = plan.expected(plan.home(), folder.name, found)
    return [run for run in runs if run.name in planned.get(run.notebook, [run.name])]


def _printed(evidence: Evidence, run: Finished, datasets: Iterable[str]) -> list[bool] | None:
    """What the run's claims say of this sentence, case by case; None where it printed none."""
    several = "{dataset}" in evidence.sentence
    patterns = (
        [evidence.sentence.replace("{dataset}", one) for one in datasets]
        if several
        else [evidence.sentence]
    )
    lines = [
        line
        for pattern in patterns
        for line in run.claims
        if fnmatchcase(line["sentence"], pattern)
    ]
    return [one for line in lines for one in line["each"]] if lines else None


def _of(evidence: Evidence, run: Finished, found: dict) -> str:
    if found:
        return pairs.cases(found)
    return next(
        line["of"] for line in run.claims if fnmatchcase(line["sentence"], evidence.sentence)
    )


def _judge(evidence: Evidence, run: Finished) -> _Count | None:
    """The verdict of one run; None where it says nothing of this. Raises ValueError where it
    contradicts itself.
    """
    found = {}
    if evidence.records:
        try:
            found = pairs.compare(run.records, evidence.records)
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from None
    told = (
        _printed(evidence, run, sorted({dataset for dataset, *_ in found}))
        if evidence.sentence
        else None
    )
    if evidence.records and told is not None and told != list(found.values()):
        raise ValueError(
            f'{run.name}: "{evidence.sentence}" was printed as {sum(told)} of {len(told)}, but its records give '
            f"{sum(found.values())} of {len(found)}, or other cases: result.json or claims.jsonl was changed; run it again"
        )
    each = list(found.values()) if evidence.records else told
    return _Count(sum(each), len(each), _of(evidence, run, found)) if each else None


def _total(counts: list[_Count]) -> _Count:
    of = {count.of for count in counts}
    return _Count(
        sum(count.held for count in counts),
        sum(count.cases for count in counts),
        of.pop() if len(of) == 1 else "cases",
    )


def _paper_says(claim: Claim) -> str:
    """The paper's side: its words, or its own count of the same pairs."""
    if claim.paper or not claim.evidence or claim.group == "control":
        return claim.paper or (NO_CONTROL if claim.group == "control" else "printed")
    compared = [
        pairs.compare(pairs.printed(), one.records) for one in claim.evidence if one.records
    ]
    total = _total(
        [_Count(sum(found.values()), len(found), pairs.cases(found)) for found in compared]
    )
    return f"at {total.held} of {total.cases} {total.of}"


def _ours(claim: Claim, runs: list[Finished]) -> str:
    """Model, data and number of seeds behind records that decided; behind sentences, what those say
    of themselves.
    """
    data: dict[tuple, dict] = {}
    told: dict[str, None] = {}
    for run in runs:
        evidence = [one for one in claim.evidence if one.notebook == run.notebook]
        if any(one.records for one in evidence):
            key = (
                run.about.get("model", "model not recorded"),
                len({record["seed"] for record in run.records}),
            )
            data.setdefault(key, {})[run.about.get("data", "data not recorded")] = None
            continue
        lines = [
            line
            for line in run.claims
            if any(fnmatchcase(line["sentence"], one.sentence) for one in evidence)
        ]
        told |= {line["ours"]: None for line in lines}
    scored = [
        f"{model}, {', '.join(sets)}, {seeds} seed{'s' * (seeds > 1)}"
        for (model, seeds), sets in data.items()
    ]
    return "; ".join([*scored, *told])


def _made(run: Finished) -> dict[str, str]:
    """Versions and commit of a run; empty where it left no certificate."""
    commit = run.about.get("commit")
    return run.about.get("versions", {}) | ({"commit": _short(commit)} if commit else {})


def _short(commit: str) -> str:
    name, dirty, _ = commit.partition("+")
    return name[:8] + dirty + ("dirty" if dirty else "")


def usual(runs: list[Finished]) -> dict[str, str]:
    """Library and commit -> what most runs of the profile were made with."""
    seen: dict[str, Counter] = {}
    for run in runs:
        for name, version in _made(run).items():
            seen.setdefault(name, Counter())[version] += 1
    return {name: max(sorted(versions), key=versions.get) for name, versions in seen.items()}


def _differs(runs: list[Finished], most: dict[str, str]) -> str:
    told: dict[str, list[str]] = {}
    for run in runs:
        made = _made(run)
        other = [
            f"{name} {made[name]}" for name in most if made.get(name, most[name]) != most[name]
        ]
        if text := ", ".join(other) if made else "no certificate":
            told.setdefault(text, []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in told.items())


def _verdict(claim: Claim, runs: list[Finished], most: dict[str, str]) -> Verdict:
    said = _paper_says(claim)
    if claim.arithmetic:
        checks = arithmetic.CHECKS[claim.arithmetic](paper.records())
        return Verdict(
            claim, said, "recomputed", sum(one.agrees for one in checks), len(checks), "numbers"
        )
    counts, behind, missing = [], {}, []
    for evidence in claim.evidence:
        judged = {
            run.name: (run, _judge(evidence, run))
            for run in runs
            if run.notebook == evidence.notebook
        }
        judged = {name: pair for name, pair in judged.items() if pair[1]}
        several = "runs × " if len(judged) > 1 else ""
        counts += [
            _Count(count.held, count.cases, several + count.of) for _, count in judged.values()
        ]
        behind |= {name: run for name, (run, _) in judged.items()}
        missing += [evidence.notebook] if not judged else []
    total = _total(counts) if counts else _Count(0, 0, "")
    behind = list(behind.values())
    return Verdict(
        claim,
        said,
        _ours(claim, behind),
        total.held,
        total.cases,
        total.of,
        tuple(dict.fromkeys(missing)),
        _differs(behind, most),
    )


def judge(runs: list[Finished]) -> list[Verdict]:
    """Every claim with its verdict, from runs of one profile, in the order of claims.yaml.

    Raises ValueError where the paper's tables were changed, or a run's scores cannot be judged,
    naming the run.
    """
    arithmetic.verify()
    for run in runs:
        pairs.check(run.name, run.records)
    most = usual(runs)
    return [_verdict(claim, runs, most) for claim in claims()]
