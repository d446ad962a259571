"""Scores of one notebook as tables: mean and spread over seeds, the paper's value beside.

Methods stand by removed fraction, or by task with a block for each removed fraction (`layouts.py`).
A table without a control row (λ = 0, same steps, data, optimiser and trained parameters) is
refused: without it, what fine-tuning alone does would be credited to the method.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prehab_lib.report import layouts
from prehab_lib.report.layouts import SPLIT, Layout

if TYPE_CHECKING:
    import pandas

VARIANT = (
    "lora",
    "surrogate",
    "lam",
    "coordinates",
    "order",
    "train",
    "steps",
    "variant",
)  # ... here, rows
AVERAGE = "Average"


@dataclass
class Table:
    """One table. cells: a row per (row, removed), or per (row, removed, dataset, metric) where the
    layout is one by task, with mean, std, n, achieved, paper. refusal: why it is not printed.
    notes: what records say of their own score.
    """

    title: str
    name: str
    cells: "pandas.DataFrame"
    refusal: str = ""
    differs: str = ""
    layout: Layout | None = None
    notes: tuple[str, ...] = ()


def _present(frame, columns) -> list[str]:
    return [column for column in columns if column in frame and frame[column].notna().any()]


def _labels(frame, within: list[str]) -> list[str]:
    """Row names: the method, with whatever sets its variants apart, and its control marked.

    within: fields that stand elsewhere in the table, so that a variant counts only where it differs
    among equals of these.
    """
    varying = {method: set() for method in frame["method"]}
    for (method, *_), group in frame.groupby(["method", *within]):
        varying[method] |= {
            column for column in _present(group, VARIANT) if group[column].nunique(dropna=False) > 1
        }

    def label(record) -> str:
        told = (
            ["λ = 0" if record["method"] == "control" else "control, λ = 0"]
            if record["control"]
            else []
        )
        for column in (column for column in VARIANT if column in varying[record["method"]]):
            value = record[column]
            if isinstance(value, bool):
                told += [column] * value
            elif (
                value == value and value is not None and not (record["control"] and column == "lam")
            ):
                told.append(
                    f"{column} {value:g}" if isinstance(value, float) else f"{column} {value}"
                )
        return record["method"] + (f" ({', '.join(told)})" if told else "")

    return [label(record) for record in frame.to_dict("records")]


def _with_arms(frame) -> list[str]:
    """Row names, ending in the arm where several arms have one name and the arm is more than the
    method's name again.
    """
    if "arm" not in frame:
        return list(frame["row"])
    several = frame.groupby("row")["arm"].transform("nunique") > 1
    told = several & frame["arm"].notna() & (frame["arm"] != frame["method"])
    return list(frame["row"].where(~told, frame["row"] + ", " + frame["arm"].astype(str)))


def paper_value(record: dict) -> float | None:
    """The paper's number for a record that names its `paper_table`; None where the paper prints
    none.
    """
    from prehab_lib.report import paper

    if not isinstance(record.get("paper_table"), str) or record["control"]:
        return None
    dataset = record.get("paper_dataset")
    where = {
        "lora": record.get("lora") is True,
        "dataset": dataset if isinstance(dataset, str) else None,
    }
    method = record.get("paper_method")
    method = method if isinstance(method, str) else record["method"]
    for lam in (None, record.get("lam")):
        try:
            return paper.value(record["paper_table"], method, record["removed"], lam=lam, **where)
        except ValueError:
            continue
    return None


def _paper_setting(name: str) -> str:
    from prehab_lib.report import paper

    printed = paper.records(name)
    models, data = ({record[field] for record in printed} for field in ("model", "dataset"))
    sets = {name.partition(" / ")[0] for name in data}  # "GLUE dev / CoLA" is one of many columns
    return f"{', '.join(sorted(models))} on {', '.join(sorted(sets))}"


def _refusal(frame, title: str, place: list[str]) -> str:
    """place: the fields that make a cell, besides the row."""
    compressed = frame[frame.removed > 0]
    missing = [at for at, group in compressed.groupby(place, sort=False) if not group.control.any()]
    if not frame.control.any() or missing:
        at = (
            f" at {', '.join(_where(*one) for one in sorted(missing))} removed"
            if frame.control.any()
            else ""
        )
        return f"Not printed: {title} has no control row (λ = 0, all else equal){at}. Record one with control=True."
    if (twice := frame[frame.duplicated(["row", *place, "seed"])]).size:
        row, seed = twice[["row", "seed"]].iloc[0]
        return (
            f"Not printed: {title} has two values for {row} at {_where(*twice[place].iloc[0])} removed, seed {seed}. "
            f"Record what sets them apart in one of the columns {', '.join((*SPLIT, *VARIANT, 'arm'))}."
        )
    return ""


def _where(removed: float, task: str = "", metric: str = "") -> str:
    return f"{removed:.0%}" + (f" ({task}, {metric})" if task else "")


def _notes(frame, place: list[str]) -> tuple[str, ...]:
    """One sentence for each text in the field `note`, with the cells it is about."""
    if "note" not in frame:
        return ()
    about: dict[str, dict[str, None]] = {}
    for record in frame.to_dict("records"):
        if isinstance(record["note"], str) and record["note"]:
            cell = f"{record['row']} at {_where(*(record[field] for field in place))}"
            about.setdefault(record["note"], {})[cell] = None
    return tuple(f"Note: {note}: {', '.join(cells)}." for note, cells in about.items())


def _averages(frame, records: list[dict], layout: Layout) -> list[dict]:
    """A record for each row, removed fraction and seed that has a score for every task of the
    layout.
    """
    found = []
    for (row, _, _), group in frame.groupby(["row", "removed", "seed"], sort=False):
        if set(group.dataset) != set(layout.tasks):
            continue
        first = records[group.index[0]]
        told = {"dataset": AVERAGE, "metric": "mean", "row": row}
        told["value"] = layout.average(dict(zip(group.dataset, group.value, strict=True)))
        told |= {"achieved": group.achieved.mean(), "seconds": group.seconds.sum()}
        printed = isinstance(first.get("paper_dataset"), str)
        told["paper"] = paper_value(first | {"paper_dataset": AVERAGE}) if printed else None
        found.append(first | told)
    return found


def _split(layout: Layout | None) -> list[str]:
    """Fields whose values make tables of their own."""
    if not layout:
        return list(SPLIT)
    return [
        column
        for column in SPLIT
        if column != "dataset" and (column != "paper_table" or layout.paper_table)
    ]


def _table(notebook: str, about: dict, records: list[dict], layout: Layout | None) -> Table:
    import pandas

    frame = pandas.DataFrame(records)
    first = frame.iloc[0]
    split = {column: str(first[column]) for column in _present(frame, _split(layout))}
    place = ["removed", "dataset", "metric"] if layout else ["removed"]
    up = "higher" if first.higher_is_better else "lower"
    beside = f", beside Table {split['paper_table']} of the paper" if "paper_table" in split else ""
    told = "".join(f", {value}" for column, value in split.items() if column != "paper_table")
    title = f"{notebook}: {layout.title if layout else first.metric}{told} ({up} is better){beside}"
    frame["row"] = _labels(frame, place[1:])
    frame["row"] = _with_arms(frame)
    frame["paper"] = pandas.Series([paper_value(record) for record in records], dtype=float)
    refusal, notes = _refusal(frame, title, place), _notes(frame, place)
    if layout and layout.average and not refusal:
        frame = pandas.DataFrame(
            frame.to_dict("records") + _averages(frame, records, layout)
        ).astype({"paper": float})
    cells = frame.groupby(["row", *place], sort=False, as_index=False).agg(
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
    kind = layout.name if layout else str(first.metric)
    apart = [value for value in split.values() if value != kind]
    name = "_".join(
        [notebook, kind, *(value.replace(" ", "-").replace("/", "-") for value in apart)]
    )
    return Table(title, name, cells, refusal, differs, layout, notes)


def tables(notebook: str, about: dict, records: list[dict]) -> list[Table]:
    """One table for each layout by task, else for each metric, and for each value of the columns in
    SPLIT, in the order of the records.
    """
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        layout = layouts.of(record)
        kind = layout.name if layout else record["metric"]
        groups.setdefault((kind, *(record.get(column) for column in _split(layout))), []).append(
            record
        )
    return [_table(notebook, about, group, layouts.of(group[0])) for group in groups.values()]


def _columns(table: Table) -> list[tuple]:
    """Keys of the columns, in print order: removed fractions, or (task, metric) with the average
    last.
    """
    if not table.layout:
        return [(removed,) for removed in sorted(table.cells.removed.unique())]
    order = [*table.layout.tasks, AVERAGE]
    found = table.cells[["dataset", "metric"]].drop_duplicates().itertuples(index=False, name=None)
    return sorted(found, key=lambda column: order.index(column[0]))


def _blocks(table: Table) -> list[tuple]:
    """(heading, its cells): one for each removed fraction where tasks run across, else one without
    a heading.
    """
    if not table.layout:
        return [("", table.cells)]
    return [
        (f"**{removed:.0%} removed**", cells) for removed, cells in table.cells.groupby("removed")
    ]


def markdown(table: Table) -> list[str]:
    """Lines of Markdown: the table with the paper's rows in italics, or the sentence that refuses
    it.
    """
    if table.refusal:
        return [table.refusal]
    layout, columns = table.layout, _columns(table)
    mean, spread = (".3f", ".3f") if layout else (".4g", ".2g")

    def line(name: str, texts: dict[tuple, str]) -> str:
        return f"| {name} | {' | '.join(texts.get(column, '') for column in columns)} |"

    def by_column(cells) -> dict:
        return {
            ((cell.dataset, cell.metric) if layout else (cell.removed,)): cell
            for cell in cells.itertuples()
        }

    if layout:
        head = line("task (metric)", {column: f"{column[0]} ({column[1]})" for column in columns})
    else:
        head = line("parameters removed", {column: f"{column[0]:.0%}" for column in columns})
    lines = [head, "|---" * (len(columns) + 1) + "|"]
    for heading, cells in _blocks(table):
        lines += [line(heading, {})] if heading else []
        for row, group in cells.groupby("row", sort=False):
            found = by_column(group)
            ours = {
                column: f"{cell.mean:{mean}}"
                + (f" ± {cell.std:{spread}}" if cell.n > 1 else "")
                + f" ({cell.n})"
                for column, cell in found.items()
            }
            lines.append(line(row, ours))
            printed = {
                column: f"*{cell.paper:g}*"
                for column, cell in found.items()
                if cell.paper == cell.paper
            }
            if printed:
                lines.append(line(f"*the paper: {row}*", printed))
    lines += [
        "",
        "Mean ± standard deviation over seeds (number of seeds). " + achieved(table.cells),
    ]
    if layout and AVERAGE in set(table.cells.dataset):
        lines.append(layout.average_note)
    return [*lines, *table.notes, *([table.differs] if table.differs else [])]


def achieved(cells) -> str:
    """What was removed as recounted from the modules, beside what was asked."""
    told = []
    for removed, group in cells[cells.removed > 0].groupby("removed"):
        low, high = group.achieved.min(), group.achieved.max()
        told.append(
            f"{removed:.0%} asked, {low:.1%}"
            + (f" to {high:.1%}" if f"{low:.1%}" != f"{high:.1%}" else "")
        )
    return f"Removed as achieved: {'; '.join(told)}." if told else ""
