"""Who beats whom, from records: paired by data set, removed fraction and seed. And what records
must be to be paired at all.
"""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import pairwise

import yaml

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


def printed() -> list[dict]:
    """The paper's numbers, without averages, as records of ours: our keys as arm, one seed."""
    records = []
    for record in map(paper.named, paper.records()):
        if not record["dataset"].endswith("Average"):
            place = {"paper_table": record["table"], "paper_dataset": record["dataset"], "seed": 0}
            records.append(record | place | {"arm": record["method"], "control": False})
    return records


def _sides(fields: dict) -> tuple[dict, dict, dict]:
    """What the better and the worse side must have, and what both must: `one > other` splits."""
    better, worse, both = {}, {}, {}
    for name, value in fields.items():
        if isinstance(value, str) and " > " in value:
            better[name], worse[name] = map(yaml.safe_load, value.split(" > "))
        else:
            both[name] = value
    if not better:
        raise ValueError(f"{fields}: no field says `one > other`")
    return better, worse, both


def _fits(record: dict, name: str, wanted) -> bool:
    value = record.get(name)
    if name == "lora":
        value = bool(value)
    if isinstance(value, str) and isinstance(wanted, str):
        return fnmatchcase(value, wanted)
    return value == wanted


def _placed(records: list[dict], both: dict, side: dict) -> dict[tuple, dict]:
    """Place -> the record of one side. Raises ValueError where two records claim the same place."""
    wanted = {"lora": False} | both | side
    uncut, highest = wanted.pop("uncut", False), wanted.pop("highest", False)
    extreme = wanted.pop("lam", None)
    chosen = [record for record in records if (record["removed"] == 0) == uncut]
    for name, value in wanted.items():
        chosen = [record for record in chosen if _fits(record, name, value)]
    if extreme:
        lams = {record["lam"] for record in chosen if record.get("lam")}
        lam = {"max": max, "min": min}[extreme](lams, default=None)
        chosen = [record for record in chosen if record.get("lam") == lam]
    if highest:
        most = max((record["removed"] for record in chosen), default=None)
        chosen = [record for record in chosen if record["removed"] == most]
    placed: dict[tuple, dict] = {}
    for record in chosen:
        place = _place(record)
        if place in placed:
            raise ValueError(f"two scores for {_named(side)} at {_where(place)}")
        placed[place] = record
    return placed


def _place(record: dict) -> tuple:
    return str(record.get("dataset") or ""), record["removed"], record["seed"]


def _named(side: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in side.items())


def _where(place: tuple) -> str:
    dataset, removed, seed = place
    return f"{dataset}{', ' if dataset else ''}{removed:.0%} removed, seed {seed}"


def compare(records: list[dict], fields: dict) -> dict[tuple, bool]:
    """(data set, removed, seed) -> whether one side beats the other there, which a tie does not.

    fields: what a record must have (text may hold *); `one > other` in a text names the two sides.
    lam: max or min takes the largest or smallest λ above 0. lora is false where nothing says
    otherwise. highest: at the highest removed fraction alone. uncut: at nothing removed. grows: ask
    instead whether the lead grows from each fraction to the next.
    Sorted; empty where one of the sides has no record. Raises ValueError for a score without its
    partner, two scores in one place, or fields that name no sides.
    """
    fields = dict(fields)
    grows = fields.pop("grows", False)
    better_side, worse_side, both = _sides(fields)
    better, worse = (_placed(records, both, side) for side in (better_side, worse_side))
    if not better or not worse:
        return {}
    alone = sorted(better.keys() ^ worse.keys())
    if alone:
        sides = f"{_named(better_side)} and {_named(worse_side)}"
        raise ValueError(f"{sides} do not both stand at {_where(alone[0])}")
    leads = {}
    for place in sorted(better):
        direction = 1 if better[place]["higher_is_better"] else -1
        leads[place] = direction * (better[place]["value"] - worse[place]["value"])
    return _growth(leads) if grows else {place: lead > 0 for place, lead in leads.items()}


def _growth(leads: dict[tuple, float]) -> dict[tuple, bool]:
    """At each fraction but the lowest, whether the lead is larger than at the one before."""
    grown = {}
    for before, place in pairwise(sorted(leads, key=lambda place: (place[0], place[2], place[1]))):
        if (before[0], before[2]) == (place[0], place[2]):
            grown[place] = leads[place] > leads[before]
    return grown


def cases(places: Iterable[tuple]) -> str:
    """What is counted, in words: ratios, and columns and seeds where there are several."""
    datasets, _, seeds = (set(several) for several in zip(*places, strict=True))
    return " × ".join(["columns"] * (len(datasets) > 1) + ["ratios"] + ["seeds"] * (len(seeds) > 1))


def check(name: str, records: list[dict]) -> None:
    """Records of the run `name` can be judged: scores are possible, and what was prepared stands
    beside its control.

    Raises ValueError naming run, table and place otherwise.
    """
    for record in records:
        metric, value, up = record["metric"], record["value"], record["higher_is_better"]
        low, high, should = BOUNDS.get(metric, (-math.inf, math.inf, up))
        if not low <= value <= high or up != should:
            score = f"{metric} = {value:g}, {'higher' if up else 'lower'} being better"
            remedy = "its result.json was changed; run it again"
            raise ValueError(f"{name}: {score}, is no score of {record['method']}: {remedy}")
    cut = [record for record in records if record["removed"] > 0]
    controls = {_partner(record) for record in cut if record["control"]}
    tables = {record["paper_table"] for record in cut if record.get("paper_table")}
    for table in sorted(tables - {table for table, *_ in controls}):
        lacks = "no control row (λ = 0, all else equal)"
        raise ValueError(f"{name}: its scores beside Table {table} have {lacks}")
    for record in cut:
        prepared = "prehab" in (record["method"], record.get("arm")) and not record["control"]
        if prepared and _partner(record) not in controls:
            table = record.get("paper_table")
            title = f"Table {table}" if table else f"its table of {record['metric']}"
            lacks = f"no control (λ = 0, all else equal) at {_where(_place(record))}"
            raise ValueError(f"{name}: {title}: prehab has {lacks}")


def _partner(record: dict) -> tuple:
    """What a prepared model and its control share."""
    method = "" if record["method"] in ("prehab", "control") else record["method"]
    names = ("paper_table", "part", "dataset", "removed", "seed")
    return (*map(record.get, names), bool(record.get("lora")), method)
