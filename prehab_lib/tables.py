"""Scores of one notebook as tables: method by removed fraction, mean and spread over seeds, the paper's value beside.

A table without a control row (λ = 0, same steps, data, optimiser and trained parameters) is refused: without it, what
fine-tuning alone does would be credited to the method.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

SPLIT = ("paper_table", "dataset", "model", "split")  # values that differ here make tables of their own
VARIANT = ("lora", "surrogate", "lam", "coordinates", "order", "train", "steps", "variant")  # ... here, rows
KEY = ["row", "removed", "seed"]


@dataclass
class Table:
    """One table. cells: a row per (row, removed) with mean, std, n, achieved, paper. refusal: why it is not printed."""

    title: str
    name: str
    cells: "pandas.DataFrame"
    refusal: str = ""
    differs: str = ""


def _present(frame, columns) -> list[str]:
    return [column for column in columns if column in frame and frame[column].notna().any()]


def _labels(frame) -> list[str]:
    """Row names: the method, with whatever sets its variants apart, and its control marked."""
    varying = {
        method: [column for column in _present(group, VARIANT) if group[column].nunique(dropna=False) > 1]
        for method, group in frame.groupby("method")
    }

    def label(record) -> str:
        told = ["control, λ = 0"] if record["control"] else []
        for column in varying[record["method"]]:
            value = record[column]
            if isinstance(value, bool):
                told += [column] * value
            elif value == value and value is not None and not (record["control"] and column == "lam"):
                told.append(f"{column} {value:g}" if isinstance(value, float) else f"{column} {value}")
        return record["method"] + (f" ({', '.join(told)})" if told else "")

    return [label(record) for record in frame.to_dict("records")]


def paper_value(record: dict) -> float | None:
    """The paper's number for a record that names its `paper_table`; None where the paper prints none."""
    from prehab_lib import paper

    if not isinstance(record.get("paper_table"), str) or record["control"]:
        return None
    dataset = record.get("paper_dataset")
    where = {"lora": record.get("lora") is True, "dataset": dataset if isinstance(dataset, str) else None}
    method = record.get("paper_method")
    method = method if isinstance(method, str) else record["method"]
    for lam in (None, record.get("lam")):
        try:
            return paper.value(record["paper_table"], method, record["removed"], lam=lam, **where)
        except ValueError:
            continue
    return None


def _paper_setting(name: str) -> str:
    from prehab_lib import paper

    printed = paper.records(name)
    models, data = ({record[field] for record in printed} for field in ("model", "dataset"))
    return f"{', '.join(sorted(models))} on {', '.join(sorted(data))}"


def _refusal(frame, title: str) -> str:
    missing = [
        f"{removed:.0%}" for removed, group in frame[frame.removed > 0].groupby("removed") if not group.control.any()
    ]
    if not frame.control.any() or missing:
        at = f" at {', '.join(missing)} removed" if frame.control.any() else ""
        return f"Not printed: {title} has no control row (λ = 0, all else equal){at}. Record one with control=True."
    if (twice := frame[frame.duplicated(KEY)]).size:
        row, removed, seed = twice[KEY].iloc[0]
        return (
            f"Not printed: {title} has two values for {row} at {removed:.0%} removed, seed {seed}. "
            f"Record what sets them apart in one of the columns {', '.join((*SPLIT, *VARIANT))}."
        )
    return ""


def _table(notebook: str, about: dict, records: list[dict]) -> Table:
    import pandas

    frame = pandas.DataFrame(records)
    first = frame.iloc[0]
    split = {column: str(first[column]) for column in _present(frame, SPLIT)}
    up = "higher" if first.higher_is_better else "lower"
    beside = f", beside Table {split['paper_table']} of the paper" if "paper_table" in split else ""
    told = "".join(f", {value}" for column, value in split.items() if column != "paper_table")
    title = f"{notebook}: {first.metric}{told} ({up} is better){beside}"
    frame["row"] = _labels(frame)
    frame["paper"] = pandas.Series([paper_value(record) for record in records], dtype=float)
    cells = frame.groupby(["row", "removed"], sort=False, as_index=False).agg(
        method=("method", "first"),
        control=("control", "first"),
        mean=("value", "mean"),
        std=("value", "std"),
        n=("seed", "nunique"),
        achieved=("achieved", "mean"),
        seconds=("seconds", "sum"),
        paper=("paper", "first"),
    )
    differs = ""
    if "paper_table" in split:
        ours = f"{about.get('model', 'model not recorded')} on {about.get('data', 'data not recorded')}"
        differs = f"Ours: {ours}. The paper: {_paper_setting(split['paper_table'])}. Compare sign and order, not size."
    name = "_".join(
        [notebook, str(first.metric), *(value.replace(" ", "-").replace("/", "-") for value in split.values())]
    )
    return Table(title, name, cells, _refusal(frame, title), differs)


def tables(notebook: str, about: dict, records: list[dict]) -> list[Table]:
    """One table for each metric, and for each value of the columns in SPLIT, in the order of the records."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        groups.setdefault((record["metric"], *(record.get(column) for column in SPLIT)), []).append(record)
    return [_table(notebook, about, group) for group in groups.values()]


def markdown(table: Table) -> list[str]:
    """Lines of Markdown: the table with the paper's rows in italics, or the sentence that refuses it."""
    if table.refusal:
        return [table.refusal]
    cells, columns = table.cells, sorted(table.cells.removed.unique())

    def line(name: str, texts: dict[float, str]) -> str:
        return f"| {name} | {' | '.join(texts.get(column, '') for column in columns)} |"

    lines = [
        line("parameters removed", {column: f"{column:.0%}" for column in columns}),
        "|---" * (len(columns) + 1) + "|",
    ]
    for row, group in cells.groupby("row", sort=False):
        ours = {
            cell.removed: f"{cell.mean:.4g}" + (f" ± {cell.std:.2g}" if cell.n > 1 else "") + f" ({cell.n})"
            for cell in group.itertuples()
        }
        lines.append(line(row, ours))
        printed = {cell.removed: f"*{cell.paper:g}*" for cell in group.itertuples() if cell.paper == cell.paper}
        if printed:
            lines.append(line(f"*the paper: {row}*", printed))
    lines += ["", "Mean ± standard deviation over seeds (number of seeds). " + achieved(cells)]
    return lines + ([table.differs] if table.differs else [])


def achieved(cells) -> str:
    """What was removed as recounted from the modules, beside what was asked."""
    told = []
    for removed, group in cells[cells.removed > 0].groupby("removed"):
        low, high = group.achieved.min(), group.achieved.max()
        told.append(f"{removed:.0%} asked, {low:.1%}" + (f" to {high:.1%}" if f"{low:.1%}" != f"{high:.1%}" else ""))
    return f"Removed as achieved: {'; '.join(told)}." if told else ""
