"""Who beats whom, from records: paired by data set, removed fraction and seed."""

import math
from collections.abc import Iterable
from fnmatch import translate

import pandas
import yaml

from prehab_lib.report import paper

# metric -> lowest and highest possible score, and whether higher is better
BOUNDS = dict.fromkeys(("accuracy", "f1"), (0.0, 1.0, True))
BOUNDS |= dict.fromkeys(("matthews", "spearman"), (-1.0, 1.0, True))
BOUNDS |= {"top1_percent": (0.0, 100.0, True), "perplexity": (1.0, math.inf, False)}

PLACE = ["dataset", "removed", "seed"]


def printed() -> list[dict]:
    """The paper's numbers, without averages, as records of ours: our keys as arm, one seed."""
    records = [one for one in paper.records() if not one["dataset"].endswith("Average")]
    for one in records:
        one |= paper.named(one) | {"seed": 0, "control": False, "arm": paper.KEYS[one["method"]]}
        one |= {"paper_table": one["table"], "paper_dataset": one["dataset"]}
    return records


def _sides(fields: dict) -> tuple[dict, dict]:
    """What the better and the worse side must have: `one > other` splits."""
    better = {"lora": False, "uncut": False, "highest": False, "lam": None} | fields
    worse = dict(better)
    for name, value in fields.items():
        if isinstance(value, str) and " > " in value:
            better[name], worse[name] = map(yaml.safe_load, value.split(" > "))
    if better == worse:
        raise ValueError(f"{fields}: no field says `one > other`")
    return better, worse


def _scores(frame: pandas.DataFrame, wanted: dict, named: str) -> pandas.Series:
    """Place -> score, higher being better. Raises ValueError for two records in one place."""
    fits = (frame.removed == 0) == wanted["uncut"]
    for name in wanted.keys() - {"uncut", "highest", "lam"}:
        same = frame[name] == wanted[name]
        if isinstance(wanted[name], str):
            same = frame[name].astype(str).str.fullmatch(translate(wanted[name]), na=False)
        fits &= same
    chosen = frame[fits]
    if wanted["lam"]:
        lams = chosen.lam[chosen.lam > 0]
        chosen = chosen[chosen.lam == lams.agg(wanted["lam"])]
    if wanted["highest"]:
        chosen = chosen[chosen.removed == chosen.removed.max()]
    twice = chosen[chosen.duplicated(PLACE)]
    if len(twice):
        raise ValueError(f"two scores for {named} at {_where(twice.iloc[0])}")
    direction = chosen.higher_is_better.map({True: 1, False: -1})
    return (direction * chosen.value).set_axis(pandas.MultiIndex.from_frame(chosen[PLACE]))


def _where(record) -> str:
    place = f"{record['removed']:.0%} removed, seed {record['seed']}"
    return f"{record['dataset']}, {place}" if record.get("dataset") else place


def compare(records: list[dict], fields: dict) -> dict[tuple, bool]:
    """(data set, removed, seed) -> whether one side beats the other there, which a tie does not.

    fields: what a record must have (text may hold *); `one > other` in a text names the two sides.
    lam: max or min takes the largest or smallest λ above 0. lora is false where nothing says
    otherwise. highest: at the highest removed fraction alone. uncut: at nothing removed. grows: ask
    instead whether the lead grows from each fraction to the next. Sorted; empty where a side has no
    record. Raises ValueError for a score without its partner, two in one place, or no two sides.
    """
    sides = _sides({name: value for name, value in fields.items() if name != "grows"})
    if not records:
        return {}
    columns = dict.fromkeys([*PLACE, "value", "higher_is_better", "lora", "lam", *fields])
    frame = pandas.DataFrame(records).reindex(columns=list(columns))
    frame["lora"], frame["lam"] = frame.lora.eq(True), pandas.to_numeric(frame.lam)
    frame["dataset"] = frame.dataset.astype(object).where(frame.dataset.notna(), "")
    split = [name for name in sides[0] if sides[0][name] != sides[1][name]]
    names = [", ".join(f"{name} {side[name]}" for name in split) for side in sides]
    better, worse = (_scores(frame, *side) for side in zip(sides, names, strict=True))
    if better.empty or worse.empty:
        return {}
    alone = better.index.symmetric_difference(worse.index)
    if len(alone):
        place = dict(zip(PLACE, alone[0], strict=True))
        raise ValueError(f"{' and '.join(names)} do not both stand at {_where(place)}")
    leads = (better - worse).sort_index()
    if fields.get("grows"):
        leads = leads.groupby(level=["dataset", "seed"]).diff().dropna()
    return (leads > 0).to_dict()


def cases(places: Iterable[tuple]) -> str:
    """What is counted, in words: ratios, and columns and seeds where there are several."""
    datasets, _, seeds = (set(several) for several in zip(*places, strict=True))
    return " × ".join(["columns"] * (len(datasets) > 1) + ["ratios"] + ["seeds"] * (len(seeds) > 1))


def check(name: str, records: list[dict]) -> None:
    """Raises ValueError, naming the run, for an impossible score, or prehab without its control."""
    for record in records:
        metric, value, up = record["metric"], record["value"], record["higher_is_better"]
        low, high, should = BOUNDS.get(metric, (-math.inf, math.inf, up))
        if not low <= value <= high or up != should:
            score = f"{metric} = {value:g}, {'higher' if up else 'lower'} being better"
            changed = "its result.json was changed; run it again"
            raise ValueError(f"{name}: {score}, is no score of {record['method']}: {changed}")
    cut = [record for record in records if record["removed"] > 0]
    controls = {_partner(record) for record in cut if record["control"]}
    controlled = {table for table, *_ in controls}
    for record in cut:
        table, equal = record.get("paper_table"), "(λ = 0, all else equal)"
        if table and table not in controlled:
            raise ValueError(f"{name}: its scores beside Table {table} have no control row {equal}")
        prepared = "prehab" in (record["method"], record.get("arm")) and not record["control"]
        if prepared and _partner(record) not in controls:
            title = f"Table {table}" if table else f"its table of {record['metric']}"
            lacks = f"no control {equal} at {_where(record)}"
            raise ValueError(f"{name}: {title}: prehab has {lacks}")


def _partner(record: dict) -> tuple:
    """What a prepared model and its control share."""
    method = "" if record["method"] in ("prehab", "control") else record["method"]
    names = ("paper_table", "part", "dataset", "removed", "seed")
    return (*map(record.get, names), bool(record.get("lora")), method)
