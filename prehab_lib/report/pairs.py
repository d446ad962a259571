"""Who beats whom, from records: paired by data set, removed fraction and seed. And what records
must be to be paired at all.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise

from prehab_lib.report import paper

# metric -> lowest and highest possible score, and whether higher is better: a score outside, or of
# the other direction, is a file that was changed by hand or written by a slip.
BOUNDS = {
    "top1_percent": (0.0, 100.0, True),
    "accuracy": (0.0, 1.0, True),
    "f1": (0.0, 1.0, True),
    "matthews": (-1.0, 1.0, True),
    "spearman": (-1.0, 1.0, True),
    "perplexity": (1.0, math.inf, False),
}
_KEYS = {row: key for key, row in paper.ROWS.items()}


@dataclass(frozen=True)
class Pair:
    """A comparison: does `one` beat `other`?

    both, one, other: record fields with the values they must have (text may hold *). lam: max or
    min takes the largest or smallest λ above 0. lora is false where nothing says otherwise.
    highest: at the highest removed fraction alone. uncut: at nothing removed. grows: ask instead
    whether the lead of `one` grows from each fraction to the next.
    """

    one: dict
    other: dict
    both: dict = field(default_factory=dict)
    highest: bool = False
    uncut: bool = False
    grows: bool = False

    @classmethod
    def of(cls, fields: dict) -> "Pair":
        """From one flat dictionary: `one > other` in a field's text tells the sides apart, the rest
        is of both.

        Raises ValueError where no field does.
        """
        from prehab_lib.tasks.parameters import load_value

        options = {
            name: value for name, value in fields.items() if name in ("highest", "uncut", "grows")
        }
        sides: dict[str, dict] = {"one": {}, "other": {}, "both": {}}
        for name, value in fields.items():
            one, apart, other = value.partition(" > ") if isinstance(value, str) else ("", "", "")
            if apart:
                sides["one"][name], sides["other"][name] = load_value(one), load_value(other)
            elif name not in options:
                sides["both"][name] = value
        if not sides["one"]:
            raise ValueError(f"{fields}: no field says `one > other`")
        return cls(**sides, **options)


def printed() -> list[dict]:
    """The paper's numbers as records of ours: arm and method are our keys, one seed; without the
    averages.
    """
    return [
        one
        | {
            "paper_table": one["table"],
            "paper_dataset": one["dataset"],
            "removed": one["ratio_removed"],
            "seed": 0,
        }
        | {"method": _KEYS[one["method"]], "arm": _KEYS[one["method"]], "control": False}
        for one in paper.records()
        if not one["dataset"].endswith("Average")
    ]


def _fits(value, wanted) -> bool:
    if isinstance(value, str) and isinstance(wanted, str):
        return fnmatchcase(value, wanted)
    return value == wanted


def _side(records: list[dict], pair: Pair, side: dict) -> dict[tuple, dict]:
    """(data set, removed, seed) -> the record of one side. Raises ValueError where two records
    claim the same place.
    """
    wanted = {"lora": False} | pair.both | side
    lam = wanted.pop("lam", None)
    found = [one for one in records if (one["removed"] == 0) == pair.uncut]
    for name, value in wanted.items():
        found = [
            one
            for one in found
            if _fits(one.get(name) or False if name == "lora" else one.get(name), value)
        ]
    if lam is not None:
        values = [one["lam"] for one in found if one.get("lam")]
        chosen = {"max": max, "min": min}[lam](values, default=None)
        found = [one for one in found if one.get("lam") == chosen]
    if pair.highest and found:
        highest = max(one["removed"] for one in found)
        found = [one for one in found if one["removed"] == highest]
    placed: dict[tuple, dict] = {}
    for one in found:
        place = (str(one.get("dataset") or ""), one["removed"], one["seed"])
        if place in placed:
            raise ValueError(f"two scores for {_named(side)} at {_where(place)}")
        placed[place] = one
    return placed


def _named(side: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in side.items())


def _where(place: tuple) -> str:
    dataset, removed, seed = place
    return f"{f'{dataset}, ' if dataset else ''}{removed:.0%} removed, seed {seed}"


def compare(records: list[dict], pair: Pair) -> dict[tuple, bool]:
    """(data set, removed, seed) -> whether `one` beats `other` there, a tie does not; sorted. Empty
    where neither side has a record.

    Raises ValueError for a score without its partner, or two scores in one place.
    """
    one, other = _side(records, pair, pair.one), _side(records, pair, pair.other)
    if not one or not other:
        return {}
    if alone := sorted(one.keys() ^ other.keys()):
        raise ValueError(
            f"{_named(pair.one)} and {_named(pair.other)} do not both stand at {_where(alone[0])}"
        )
    leads = {
        place: (one[place]["value"] - other[place]["value"])
        * (1 if one[place]["higher_is_better"] else -1)
        for place in sorted(one)
    }
    if not pair.grows:
        return {place: lead > 0 for place, lead in leads.items()}
    series: dict[tuple, list[float]] = {}
    for dataset, removed, seed in leads:
        series.setdefault((dataset, seed), []).append(removed)
    return {
        (dataset, higher, seed): leads[dataset, higher, seed] > leads[dataset, lower, seed]
        for (dataset, seed), fractions in sorted(series.items())
        for lower, higher in pairwise(fractions)
    }


def cases(places: Iterable[tuple]) -> str:
    """What is counted, in words: columns where there are several, ratios, and seeds where there are
    several.
    """
    datasets, _, seeds = (set(several) for several in zip(*places, strict=True))
    return " × ".join(["columns"] * (len(datasets) > 1) + ["ratios"] + ["seeds"] * (len(seeds) > 1))


def check(name: str, records: list[dict]) -> None:
    """Records of the run `name` can be judged: scores are possible, and what was prepared stands
    beside its control.

    Raises ValueError naming run, table and place otherwise.
    """
    for one in records:
        low, high, up = BOUNDS.get(one["metric"], (-math.inf, math.inf, one["higher_is_better"]))
        if not low <= one["value"] <= high or one["higher_is_better"] != up:
            better = "higher" if one["higher_is_better"] else "lower"
            raise ValueError(
                f"{name}: {one['metric']} = {one['value']:g}, {better} being better, is no score of {one['method']}: "
                "its result.json was changed; run it again"
            )
    cut = [one for one in records if one["removed"] > 0]
    tables = {one["paper_table"] for one in cut if one.get("paper_table")}
    controls = {_partner(one) for one in cut if one["control"]}
    for table in sorted(tables - {table for table, *_ in controls}):
        raise ValueError(
            f"{name}: its scores beside Table {table} have no control row (λ = 0, all else equal)"
        )
    for one in cut:
        prepared = "prehab" in (one["method"], one.get("arm")) and not one["control"]
        if prepared and _partner(one) not in controls:
            table = (
                f"Table {one['paper_table']}"
                if one.get("paper_table")
                else f"its table of {one['metric']}"
            )
            place = (str(one.get("dataset") or ""), one["removed"], one["seed"])
            raise ValueError(
                f"{name}: {table}: prehab has no control (λ = 0, all else equal) at {_where(place)}"
            )


def _partner(one: dict) -> tuple:
    """What a prepared model and its control share."""
    method = "" if one["method"] in ("prehab", "control") else one["method"]
    fields = (one.get(name) for name in ("paper_table", "part", "dataset", "removed", "seed"))
    return (*fields, bool(one.get("lora")), method)
