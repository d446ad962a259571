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


def _unit(differences: pandas.DataFrame, fields: dict) -> tuple[str, str]:
    """The column that is judged, and its unit: ratio points wherever every seed has a curve."""
    own = fields.get("relative") or fields.get("natural") or "minus" in fields
    if not own and differences.points.notna().all():
        return "points", RATIO_POINTS
    return "natural", differences.unit.iloc[0]


def paper_effect(fields: dict, column: str) -> float:
    """The effect that the paper's own tables show, in the unit of `column`; NaN where none does."""
    found = pairs.differences(pairs.printed(), pairs.printed_curves(), fields)
    return float(found[column].mean()) if len(found) else np.nan


def verdict(claim: dict, differences: pandas.DataFrame) -> dict:
    """The status of a claim on records, its effect, and both in words.

    differences: rows of `pairs.differences`, of one run or several; data sets are averaged.
    """
    if differences.empty:
        return EMPTY | {"status": "not run", "verdict": "not run"}
    fields = claim["records"]
    column, unit = _unit(differences, fields)
    by_seed = differences[[column, "treated"]].groupby(level="seed").mean()
    facts = {"unit": unit, "seeds": len(by_seed), "removed": fields.get("removed", 0.6)}
    facts["paper_effect"] = np.nan if "paper" in claim else paper_effect(fields, column)
    if len(by_seed) == 1:
        mean = float(by_seed[column].iloc[0])
        words = f"undecided: {mean:+.1f} {unit}, one seed".replace("-", "−")
        return EMPTY | facts | {"mean": mean, "status": "undecided", "verdict": words}
    effect = effects.effect(by_seed[column])
    treated = not by_seed.treated.mean() < TREATED  # NaN where no tail was recorded: a rival
    size = None if np.isnan(facts["paper_effect"]) else facts["paper_effect"]
    margin = effects.MARGIN if unit == RATIO_POINTS else None
    if "margin" in claim:  # not worse by more than this
        moved = effect._replace(
            low=effect.low + claim["margin"], high=effect.high + claim["margin"]
        )
        status = effects.status(moved, treated=treated, margin=None)
    else:
        status = effects.status(effect, size, treated, margin)
    words = f"{status}: {effects.described(effect, unit)}"
    if status == "undecided":
        words += f", smaller than ± {effect.half_width:.2g} unseen"
    facts |= effect._asdict() | {"visible": effect.half_width}
    return EMPTY | facts | {"status": status, "verdict": words}


def said(row: dict) -> str:
    """The paper's side in words: its own effect, in the unit of the row."""
    if np.isnan(row["paper_effect"]):
        return ""
    return f"{row['paper_effect']:+.1f} {row['unit']}".replace("-", "−")


def of_notebook(notebook: str, results) -> pandas.DataFrame:
    """The claims that the records of this notebook decide, a row each: claim, paper, here, status.

    results: `records.Results` of this run. Further columns as `verdict` gives them, and id.
    """
    rows = []
    for claim in claims():
        if claim.get("notebook") != notebook or "records" not in claim:
            continue
        found = pairs.differences(results.records, results.curves, claim["records"])
        row = verdict(claim, found)
        if row["status"] != "not run":
            rows.append({"id": claim["id"], "claim": claim["says"], "paper": said(row)} | row)
    return pandas.DataFrame(rows)
