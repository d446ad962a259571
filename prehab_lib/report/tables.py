"""Scores of one notebook as tables: mean and spread over seeds, the paper's value beside.

A table has a row a method and a column a removed fraction. One without a control row (λ = 0, all
else equal) is refused: what fine-tuning alone does would be credited to the method.
"""

from dataclasses import dataclass

import pandas

from prehab_lib.report import paper
from prehab_lib.tasks import glue

# Values that differ in these fields of a record make tables of their own.
SPLIT = ("metric", "paper_table", "dataset", "model", "split")


@dataclass
class Table:
    """cells: a row per (row, removed). refusal: why it is not printed. notes: sentences below."""

    title: str
    name: str
    cells: pandas.DataFrame
    refusal: str
    notes: list[str]


def _labels(frame: pandas.DataFrame) -> pandas.Series:
    """Row names: the method, its arm where that says more, and marks of rehab and control."""
    labels = frame.method
    if "arm" in frame:
        more = frame.arm.notna() & (frame.arm != frame.method)
        labels = labels.where(~more, labels + ", " + frame.arm.astype(str))
    if "lora" in frame:
        labels = labels + frame.lora.map({True: ", lora"}).fillna("")
    return labels + frame.control.map({True: " (control, λ = 0)", False: ""})


def paper_value(record: dict) -> float | None:
    """The paper's number for a record that names its `paper_table`; None where it prints none."""
    if not record.get("paper_table") or record["control"]:
        return None
    method = record.get("paper_method") or record["method"]
    where = {"lora": record.get("lora") is True, "dataset": record.get("paper_dataset")}
    for lam in (None, record.get("lam")):
        try:
            return paper.value(record["paper_table"], method, record["removed"], lam=lam, **where)
        except ValueError:
            continue
    return None


def _averages(records: list[dict]) -> list[dict]:
    """Table III's last column: a record for each model and seed that has a score for every task."""
    fields = ("method", "arm", "control", "removed", "seed", "lora", "surrogate", "lam")
    models: dict[tuple, dict[str, dict]] = {}
    for record in records:
        if record.get("paper_table") == "III":
            scored = models.setdefault(tuple(map(record.get, fields)), {})
            scored[record.get("dataset")] = record
    means = []
    place = {"dataset": "Average", "paper_dataset": "Average", "metric": "mean", "note": ""}
    for scored in models.values():
        if scored.keys() == set(glue.COLUMNS):
            mean = glue.average({task: record["value"] for task, record in scored.items()})
            means.append(scored[glue.COLUMNS[0]] | place | {"value": mean})
    return means


def _refusal(frame: pandas.DataFrame, title: str) -> str:
    controlled = frame.groupby("removed").control.any()
    bare = [f"{removed:.0%}" for removed in controlled[~controlled].index if removed > 0]
    if bare or not frame.control.any():
        at = f" at {', '.join(bare)} removed" if bare else ""
        lacks = f"no control row (λ = 0, all else equal){at}"
        return f"Not printed: {title} has {lacks}. Record one with control=True."
    twice = frame[frame.duplicated(["row", "removed", "seed"])]
    if len(twice):
        row, removed, seed = twice[["row", "removed", "seed"]].iloc[0]
        where = f"two values for {row} at {removed:.0%} removed, seed {seed}"
        return f"Not printed: {title} has {where}. Record what sets them apart as their arm."
    return ""


def _notes(frame: pandas.DataFrame, cells: pandas.DataFrame, about: dict) -> list[str]:
    """Sentences below a table: what was removed, what its records note, whose models these are."""
    counted = []
    for removed, shares in cells[cells.removed > 0].groupby("removed").achieved:
        ends = dict.fromkeys(f"{share:.1%}" for share in (shares.min(), shares.max()))
        counted.append(f"{removed:.0%} asked, {' to '.join(ends)}")
    achieved = f" Removed as achieved: {'; '.join(counted)}." if counted else ""
    notes = [f"Mean ± standard deviation over seeds (number of seeds).{achieved}"]
    if "note" in frame:
        places = frame.row + frame.removed.map(" at {:.0%}".format)
        for note, rows in places.groupby(frame.note.replace("", None)):
            notes.append(f"Note: {note}: {', '.join(dict.fromkeys(rows))}.")
    if frame.paper.notna().any():
        theirs = paper.table(frame.paper_table.iloc[0])
        data = sorted({name.partition(" / ")[0] for name in theirs.dataset})
        setting = f"{', '.join(sorted(set(theirs.model)))} on {', '.join(data)}"
        ours = " on ".join(about.get(name) or f"{name} not recorded" for name in ("model", "data"))
        notes.append(f"Ours: {ours}. The paper: {setting}. Compare sign and order, not size.")
    return notes


def _table(notebook: str, about: dict, records: list[dict]) -> Table:
    frame, first = pandas.DataFrame(records), records[0]
    frame["row"] = _labels(frame)
    frame["paper"] = pandas.Series(map(paper_value, records), dtype=float)
    split = {name: str(first[name]) for name in SPLIT if first.get(name)}
    words = ", ".join(value for name, value in split.items() if name != "paper_table")
    title = f"{notebook}: {words} ({'higher' if first['higher_is_better'] else 'lower'} is better)"
    if frame.paper.notna().any():
        title += f", beside Table {first['paper_table']} of the paper"
    columns = {"control": ("control", "first"), "mean": ("value", "mean"), "std": ("value", "std")}
    columns |= {"n": ("seed", "nunique"), "achieved": ("achieved", "mean")}
    columns["paper"] = ("paper", "first")
    cells = frame.groupby(["row", "removed"], sort=False, as_index=False).agg(**columns)
    name = "_".join([notebook, *split.values()]).replace(" ", "-").replace("/", "-")
    return Table(title, name, cells, _refusal(frame, title), _notes(frame, cells, about))


def tables(notebook: str, about: dict, records: list[dict]) -> list[Table]:
    """A table for each value of the fields in SPLIT. about: `model` and `data` of the runs."""
    groups: dict[tuple, list[dict]] = {}
    for record in [*records, *_averages(records)]:
        groups.setdefault(tuple(map(record.get, SPLIT)), []).append(record)
    return [_table(notebook, about, group) for group in groups.values()]


def markdown(table: Table) -> list[str]:
    """Lines of Markdown, the paper's rows in italics; or the sentence that refuses the table."""
    if table.refusal:
        return [table.refusal]
    cells = table.cells
    spread = cells["std"].map(" ± {:.2g}".format).where(cells.n > 1, "")
    texts = cells["mean"].map("{:.4g}".format) + spread + cells.n.map(" ({})".format)
    printed = cells.paper.map("*{:g}*".format, na_action="ignore")
    rows = {}
    for row, at in cells.groupby("row", sort=False).groups.items():
        removed, name = cells.removed[at], row.replace("|", r"\|")
        rows[name] = dict(zip(removed, texts[at], strict=True))
        rows[f"*the paper: {name}*"] = dict(zip(removed, printed[at], strict=True))
    wide = pandas.DataFrame.from_dict(rows, orient="index").dropna(how="all").fillna("")
    wide = wide[sorted(wide)].rename(columns="{:.0%}".format).rename_axis("parameters removed")
    return [*wide.to_markdown(disable_numparse=True).splitlines(), "", *table.notes]
