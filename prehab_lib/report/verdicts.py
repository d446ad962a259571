"""What records say of a claim: an effect with its interval, and one of the statuses.

`claims.yaml` holds the sentences and, named before any run, which records decide each of them, at
which fraction removed. Notebooks and the audit ask the same functions.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas
import yaml

from prehab_lib.report import effects, pairs
from prehab_lib.report.effects import RATIO_POINTS, TREATED

GROUPS = {"paper": "What the paper claims", "sums": "Its own arithmetic"}
GROUPS |= {"control": "What its tables leave out: the control, λ = 0"}
GROUPS |= {"real": "On two pretrained models, each beside its control"}
GROUPS |= {"rivals": "Other papers, and its future work"}
DECIDED = {**effects.STATUSES, "passes": "a check that passes", "fails": "a check that fails"}
STATUSES = DECIDED | {"not run": "not run", "not tested here": "not tested here"}
# What a row has where there is no effect.
EMPTY = dict.fromkeys(("mean", "low", "high", "paper_effect", "removed", "visible"), np.nan)
EMPTY |= {"unit": "", "seeds": 0}


@cache
def claims() -> tuple[dict, ...]:
    """The entries of claims.yaml with id and group, in its order."""
    text = Path(__file__).with_name("claims.yaml").read_text(encoding="utf-8")
    groups = yaml.safe_load(text).items()
    return tuple(
        {"id": id, "group": group} | entry for group, some in groups for id, entry in some.items()
    )


def _wanted(fields: dict) -> str:
    """The column of `pairs.differences` in which a claim is to be judged."""
    own = fields.get("relative") or fields.get("natural") or fields.keys() & {"minus", "of"}
    return "natural" if own else "points"


def _unit(differences: pandas.DataFrame, fields: dict) -> tuple[str, str]:
    """The column that is judged, and its unit: ratio points wherever every seed has them."""
    if _wanted(fields) == "points" and differences.points.notna().all():
        return "points", RATIO_POINTS
    units = differences.unit.unique()
    return "natural", units[0] if len(units) == 1 else "of score"


@cache
def _in_print(fields: tuple) -> pandas.DataFrame:
    return pairs.differences(pairs.printed(), pairs.printed_curves(), dict(fields))


def printed(claim: dict) -> pandas.DataFrame:
    """`pairs.differences` of the paper's own tables; empty where they do not have both sides.

    The paper has no control: beside "prehab > control" stands its gain over SVD-LLM, which it
    reads as prehab's.  A claim that no arm of the paper carries names its records by "like".
    """
    if "paper" in claim:  # said in words
        return pandas.DataFrame()
    fields = dict(claim.get("like", claim["records"]))
    if str(fields.get("arm")).startswith("prehab > control"):
        fields["arm"] = "prehab > svd_llm"
    return _in_print(tuple(fields.items()))


def paper_effect(claim: dict, column: str) -> float:
    """The effect that the paper's own tables show, in the unit of `column`; NaN where none does."""
    found = printed(claim)
    return float(found[column].mean(skipna=False)) if len(found) else np.nan


def said(claim: dict, column: str = "points") -> str:
    """The paper's side in words: its own effect, in the unit of `column` where its tables allow."""
    if "paper" in claim:
        return claim["paper"]
    found = printed(claim)
    if found.empty:
        return "no control" if claim["group"] == "control" else "not measured"
    unit = RATIO_POINTS
    if column != "points" or found.points.isna().any():
        column, unit = "natural", found.unit.iloc[0]
    words = f"{effects.written(found[column].mean(), unit, '+')} {unit}"
    if "> control" in str(claim["records"].get("arm")):
        return f"no control; {words} over SVD-LLM"
    return words


def verdict(claim: dict, differences: pandas.DataFrame) -> dict:
    """The status of a claim on records, its effect, and both sides in words.

    differences: rows of `pairs.differences`, of one run or several. Data sets are averaged seed by
    seed, over the seeds that have all of them.
    """
    fields = claim["records"]
    column, unit = _wanted(fields), ""
    wide = pandas.DataFrame()
    if len(differences):
        column, unit = _unit(differences, fields)
        places = differences[[column, "treated"]].groupby(level=["dataset", "seed"]).mean()
        wide = places[column].unstack("dataset").dropna()
    size = paper_effect(claim, column)
    facts = {"paper": said(claim, column), "paper_effect": size, "unit": unit}
    if wide.empty:
        if column == "points" and not np.isnan(size):
            facts["unit"] = RATIO_POINTS
        return EMPTY | facts | {"status": "not run", "verdict": "not run"}
    of_seeds = wide.mean(axis=1)
    facts |= {"seeds": len(wide), "removed": fields.get("removed", 0.6)}
    if len(wide) < effects.FEWEST:
        mean, count = float(of_seeds.mean()), {1: "one seed", 2: "two seeds"}[len(wide)]
        words = f"undecided: {effects.written(mean, unit, '+')} {unit}, {count}"
        return EMPTY | facts | {"mean": mean, "status": "undecided", "verdict": words}
    effect = effects.effect(of_seeds)
    treated = not places.treated.mean() < TREATED  # NaN where no tail was recorded: a rival
    if "margin" in claim:  # not worse by more than this
        ends = {name: getattr(effect, name) + claim["margin"] for name in ("low", "high")}
        status = effects.status(effect._replace(**ends), treated=treated, margin=None)
    elif column == "points":
        status = effects.status(effect, None if np.isnan(size) else size, treated)
    else:  # in another unit the paper's size says nothing of ours, nor is it said what is small
        status = effects.status(effect, treated=treated, margin=None)
    harm = " and worse" if status == "not treated" and effect.high < 0 else ""
    words = f"{status}{harm}: {effects.described(effect, unit)}"
    if "margin" in claim:
        words += f", margin {claim['margin']:g}"
    if status == "undecided":
        words += f", smaller than ± {effects.written(effect.half_width, unit)} unseen"
    facts |= effect._asdict() | {"visible": effect.half_width}
    return EMPTY | facts | {"status": status, "verdict": words}


def of_notebook(notebook: str, results) -> pandas.DataFrame:
    """The claims that the records of this notebook decide, a row each: id, claim, paper, verdict.

    results: `records.Results` of this run. Further columns as `verdict` gives them.
    """
    rows = []
    for claim in claims():
        if claim.get("notebook") != notebook or "records" not in claim:
            continue
        found = pairs.differences(results.records, results.curves, claim["records"])
        row = verdict(claim, found)
        if row["status"] != "not run":
            rows.append({"id": claim["id"], "claim": claim["says"], "paper": row["paper"]} | row)
    return pandas.DataFrame(rows)
