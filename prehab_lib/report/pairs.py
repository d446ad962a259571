"""Paired differences from records: one side against another, per seed, at one removed fraction."""

import math
from fnmatch import translate

import numpy as np
import pandas
import yaml

from prehab_lib.report import paper
from prehab_lib.report.effects import Curve, merit

# metric -> lowest and highest possible score, and whether higher is better
BOUNDS = dict.fromkeys(("accuracy", "f1"), (0.0, 1.0, True))
BOUNDS |= dict.fromkeys(("matthews", "spearman"), (-1.0, 1.0, True))
BOUNDS |= {"top1_percent": (0.0, 100.0, True), "perplexity": (1.0, math.inf, False)}

PLACE = ["dataset", "seed"]
# Of a claim's fields, those that say what is done with records instead of choosing them.
HOW = {"removed": 0.6, "minus": None, "relative": False, "natural": False, "of": "value"}
HOW |= {"partial": False}
UNITS = {
    "perplexity": "nats",
    "kl": "nats",
    "top1_percent": "points",
    "mean": "of score",
    "loss": "of loss",
}


def printed() -> list[dict]:
    """The paper's numbers as records of ours, our keys as arm; of Table III the average alone."""
    records = []
    for record in paper.records():
        if record["table"] == "III" and not record["dataset"].endswith("Average"):
            continue
        record = paper.named(record) | {"seed": 0, "control": False}
        record |= {"paper_table": record["table"], "paper_dataset": record["dataset"]}
        records.append(record | {"arm": record["method"]})
    return records


def printed_curves() -> list[dict]:
    """Of each column of the paper's tables the curve of SVD-LLM, with the original at 0 removed."""
    scores = pandas.DataFrame(printed())
    plain = scores.arm.isin(["original", "svd_llm"]) & (scores.table != "V")
    return _curves(scores[plain])


def of_table(scores: pandas.DataFrame, **plain) -> tuple[list[dict], list[dict]]:
    """Records of a table of scores, and the curves of those that have the fields `plain`.

    A score of which less is better, but for perplexity, counts below 0 on its curve.
    """
    records = scores.astype(object).where(scores.notna(), None).to_dict("records")
    fits = (scores[list(plain)] == pandas.Series(plain)).all(axis=1)
    return records, _curves(scores[fits])


def _curves(scores: pandas.DataFrame) -> list[dict]:
    curves = []
    for (dataset, seed), some in scores[~scores.lora.eq(True)].groupby(PLACE):
        if len(some) > 1:
            some = some.sort_values("removed")
            curve = {"dataset": dataset, "seed": seed, "removed": some.removed.tolist()}
            curves.append(curve | {"merits": _merits(some).tolist()})
    return curves


def _sides(fields: dict) -> tuple[dict, dict]:
    """What the better and the worse side must have: `one > other` splits."""
    better = {"lora": False} | fields
    worse = dict(better)
    for name, value in fields.items():
        if isinstance(value, str) and " > " in value:
            better[name], worse[name] = map(yaml.safe_load, value.split(" > "))
    if better == worse:
        raise ValueError(f"{fields}: no field says `one > other`")
    return better, worse


def _chosen(
    frame: pandas.DataFrame, wanted: dict, removed: float, named: str, once: bool = True
) -> pandas.DataFrame:
    """One record a place, indexed by it. once: raises ValueError for two, else the first counts."""
    fits = np.isclose(frame.removed, removed)
    for name in wanted.keys() - {"lam"}:
        same = frame[name] == wanted[name]
        if isinstance(wanted[name], str):
            same = frame[name].astype(str).str.fullmatch(translate(wanted[name]), na=False)
        fits &= same
    chosen = frame[fits]
    if wanted.get("lam"):
        lams = chosen.lam[chosen.lam > 0]
        chosen = chosen[chosen.lam == lams.agg(wanted["lam"])]
    twice = chosen[chosen.duplicated(PLACE)]
    if len(twice) and not once:
        chosen = chosen.drop_duplicates(PLACE)
    elif len(twice):
        raise ValueError(f"two scores for {named} at {_where(twice.iloc[0])}")
    return chosen.set_index(PLACE)


def _where(record) -> str:
    place = f"{record['removed']:.0%} removed, seed {record['seed']}"
    return f"{record['dataset']}, {place}" if record.get("dataset") else place


def differences(records: list[dict], curves: list[dict], fields: dict) -> pandas.DataFrame:
    """Better minus worse side, a row for each data set and seed; empty where a side has no record.

    fields: what a record must have (text may hold *); `one > other` in a text names the sides.
    removed: the fraction judged; minus: a second one, whose difference is taken off. lam: max or
    min takes the largest or smallest λ above 0. lora is false where nothing says otherwise.
    partial: where arms are runs of their own, what has no partner yet is left out.
    relative: in per cent of the worse side. natural: judged in the score's own unit. of: another
    column than the value, lower being better.
    Columns: natural, the difference in the score's own unit (perplexity in nats, higher better);
    points, in ratio points (NaN without a curve, or beyond its ends); treated, by how much of
    itself the tail at the ranks fell against the control's (NaN where none is recorded); unit.
    Raises ValueError for a score without its partner, two in one place, or no two sides.
    """
    how = HOW | {name: fields[name] for name in fields.keys() & HOW.keys()}
    sides = _sides({name: value for name, value in fields.items() if name not in HOW})
    if not records:
        return pandas.DataFrame()
    columns = dict.fromkeys([*PLACE, "removed", "metric", "value", "higher_is_better", "tail"])
    columns |= dict.fromkeys(["lora", "lam", "control", how["of"], *fields.keys() - HOW.keys()])
    frame = pandas.DataFrame(records).reindex(columns=list(columns))
    frame["lora"], frame["lam"] = frame.lora.eq(True), pandas.to_numeric(frame.lam)
    frame["dataset"] = frame.dataset.astype(object).where(frame.dataset.notna(), "")
    found = _difference(frame, curves, sides, how, how["removed"])
    if how["minus"] is not None and len(found):
        start = _difference(frame, curves, sides, how, how["minus"])
        if start.empty:
            return start
        found[["natural", "points"]] -= start[["natural", "points"]]
    return found


def _difference(frame, curves, sides, how, removed) -> pandas.DataFrame:
    split = [name for name in sides[0] if sides[0][name] != sides[1][name]]
    names = [", ".join(f"{name} {side[name]}" for name in split) for side in sides]
    better = _chosen(frame, sides[0], removed, names[0])
    worse = _chosen(frame, sides[1], removed, names[1])
    alone = better.index.symmetric_difference(worse.index)
    if how["partial"]:
        better, worse = better.drop(alone, errors="ignore"), worse.drop(alone, errors="ignore")
    if better.empty or worse.empty:
        return pandas.DataFrame()
    if len(alone) and not how["partial"]:
        place = dict(zip(PLACE, alone[0], strict=True)) | {"removed": removed}
        raise ValueError(f"{' and '.join(names)} do not both stand at {_where(place)}")
    better, worse = better.sort_index(), worse.sort_index()
    rows = pandas.DataFrame(index=better.index)
    if how["of"] != "value":
        rows["natural"] = 100 * (1 - better[how["of"]] / worse[how["of"]])
        return rows.assign(points=np.nan, treated=np.nan, unit="per cent lower")
    metric = better.metric.iloc[0]
    high, low = _merits(better), _merits(worse)
    rows["natural"] = 100 * (high / low - 1) if how["relative"] else high - low
    rows["points"] = _ratio_points(curves, high, low)
    fell = _tail_fell(frame, sides[0], split, removed or HOW["removed"])
    rows["treated"] = fell.reindex(rows.index)
    rows["unit"] = "%" if how["relative"] else UNITS.get(metric, metric)
    return rows


def _merits(chosen: pandas.DataFrame) -> pandas.Series:
    scores = merit(chosen.metric.iloc[0], chosen.value)
    if chosen.metric.iloc[0] == "perplexity":
        return scores
    return scores * np.where(chosen.higher_is_better, 1, -1)


def _ratio_points(curves: list[dict], high: pandas.Series, low: pandas.Series) -> list[float]:
    by_place = {(curve["dataset"], curve["seed"]): curve for curve in curves}
    points = []
    for place in high.index:
        if place not in by_place:
            points.append(math.nan)
            continue
        curve = Curve(by_place[place]["removed"], by_place[place]["merits"])
        points.append(curve.ratio_points(high[place], low[place]))
    return points


def _tail_fell(frame, wanted: dict, split: list[str], removed: float) -> pandas.Series:
    """By how much of itself a side's tail lies below its control's, by place, where recorded.

    The tail is that of the cut model before any recovery. split: fields that tell the sides apart.
    """
    cut = frame[frame["tail"].notna() & ~frame.lora]
    own = _chosen(cut, wanted | {"lora": False}, removed, "the tail")
    control = cut[cut.control.eq(True)]
    shared = {name: value for name, value in wanted.items() if name not in (*split, "lora", "lam")}
    alike = _chosen(control, shared, removed, "the control", once=False)
    if alike.empty:  # it may have a method or an arm of its own
        shared = {name: shared[name] for name in shared.keys() - {"method", "arm"}}
        alike = _chosen(control, shared, removed, "the control", once=False)
    tail = pandas.to_numeric(own["tail"]).where(own.lam > 0)
    return 1 - tail / pandas.to_numeric(alike["tail"]).reindex(own.index)


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
