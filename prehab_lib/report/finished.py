"""Finished runs as they lie in runs/PROFILE: what the report, the audit and the book read."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas

from prehab_lib.report.records import FIELDS, TYPES
from prehab_lib.runs import plan

CLAIM = dict.fromkeys(("sentence", "status", "paper", "ours"), str)
# What a result has, and what stands for it where there is none.
RESULT = {"about": {}, "protocol": "", "records": [], "curves": []}


@dataclass(frozen=True)
class Finished:
    """runs/PROFILE/NAME. about: without scores, the certificate of one of its figures."""

    name: str
    notebook: str
    run: dict
    claims: list[dict]
    about: dict
    protocol: str
    records: list[dict]
    curves: list[dict]

    @property
    def profiles(self) -> set[str]:
        """What its files say of their profile: one name, unless they were mixed."""
        return {part.get("profile") for part in (self.run, self.about, *self.claims)} - {None, ""}

    @property
    def made_with(self) -> dict[str, str]:
        """Versions and commit; empty where it left no certificate."""
        commit, plus, mark = (self.about.get("commit") or "").partition("+")
        versions = self.about.get("versions", {})
        return versions | {"commit": commit[:8] + plus + mark} if commit else versions


def usual(runs: list[Finished]) -> dict[str, str]:
    """Library and commit -> what most runs of the profile were made with."""
    versions = pandas.DataFrame([run.made_with for run in runs])
    return {} if versions.empty else versions.mode().iloc[0].to_dict()


def differing(runs: list[Finished], most: dict[str, str]) -> str:
    """How versions or commit of some runs differ from `most`, in words; "" where none does."""
    by_text: dict[str, list[str]] = {}
    for run in runs:
        other = [item for item in run.made_with.items() if item[1] != most[item[0]]]
        text = ", ".join(map(" ".join, other)) if run.made_with else "no certificate"
        by_text.setdefault(text, []).append(run.name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in by_text.items() if text)


def figures(folder: Path, name: str, run: dict) -> list[Path]:
    """Published figures of a run, of its profile's folder; those of a grid's run lie apart."""
    place = folder / "figures" / ("" if name == run.get("notebook", name) else name)
    files = [file for file in run.get("files", []) if file.startswith("figures/")]
    return [place / file.removeprefix("figures/") for file in files]


def _json(file: Path) -> list:
    """The objects of a file, one or one a line; none where it is not there."""
    if not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8")
        # Not splitlines, which also ends a line at characters that may stand in a sentence.
        parts = text.removesuffix("\n").split("\n") if file.suffix == ".jsonl" else [text]
        return [{**json.loads(part)} for part in parts if part]
    except (ValueError, TypeError, RecursionError):
        remedy = "remove its folder and run the profile again"
        raise ValueError(f"{file} is not JSON: {remedy}") from None


def _check(run: Finished, place: Path) -> None:
    """Raises ValueError where its files lack what every record and claim has."""
    try:
        parts = [run.about, run.run.get("params", {}), *run.records]
        whole = all(isinstance(part, dict) for part in parts)
        for record in run.records:
            whole &= all(TYPES[type(record[name])] == kind for name, kind in FIELDS.items())
        for claim in run.claims:
            whole &= all(isinstance(claim[name], kind) for name, kind in CLAIM.items())
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{place} is damaged: remove this folder and run the profile again")


def read(folder: Path) -> list[Finished]:
    """The finished runs of runs/PROFILE, by name. Raises ValueError for a torn file."""
    runs = []
    for file in sorted(folder.glob("*/run.json")):
        place = file.parent
        (run,) = _json(file)
        files = [place / "result.json", *figures(folder, place.name, run)]
        written = (part for one in files if one.suffix == ".json" for part in _json(one))
        result = next(written, {})
        facts = {name: result.get(name, nothing) for name, nothing in RESULT.items()}
        notebook, claims = run.get("notebook", place.name), _json(place / "claims.jsonl")
        runs.append(Finished(place.name, notebook, run, claims, **facts))
        _check(runs[-1], place)
    return runs


def planned(folder: Path, runs: list[Finished]) -> list[Finished]:
    """Those of runs/PROFILE that its params files ask for."""
    names = plan.expected(plan.home(), folder.name, {run.notebook for run in runs})
    return [run for run in runs if run.name in names.get(run.notebook, [run.name])]


def changed(folder: Path, runs: list[Finished]) -> list[str]:
    """Names of those whose parameters are not what the params files say now."""
    asked = plan.expected(plan.home(), folder.name, {run.notebook for run in runs})
    now = {name: params for some in asked.values() for name, params in some.items()}
    then = {run.name: run.run.get("params") for run in runs}
    return [name for name, params in then.items() if now.get(name, params) != params]
