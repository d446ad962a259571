"""Scores of one notebook beside the paper's: a row a method, a column a removed fraction."""

from contextlib import suppress

import pandas

from prehab_lib.inputs import check_choice
from prehab_lib.report import paper
from prehab_lib.runs import plan
from prehab_lib.tasks import glue

# Values that differ in these fields of a record make tables of their own.
SPLIT = ("metric", "paper_table", "dataset", "model", "split")
SPREAD = "Mean ± standard deviation over seeds (number of seeds)."


def committed(name: str, profile: str = "laptop", **rename: str) -> pandas.DataFrame:
    """The numbers of a committed figure, figures/PROFILE/NAME.csv, for a page that quotes them.

    rename: column -> what stands above it on the page. Raises FileNotFoundError without the file,
    ValueError for a column that it lacks.
    """
    file = plan.home() / "figures" / profile / f"{name}.csv"
    if not file.is_file():
        remedy = f"run the profile, then `python -m prehab_lib figures {profile}`"
        raise FileNotFoundError(f"there is no figures/{profile}/{name}.csv: {remedy}")
    table = pandas.read_csv(file)
    for column in rename:
        check_choice(f"column of {name}.csv", column, table.columns)
    return table.rename(columns=rename)


def _label(record: dict) -> str:
    """Name of its row: the method, its arm where that says more, marks of rehab and control."""
    method, arm = record["method"], record.get("arm") or record["method"]
    label = method if arm == method else f"{method}, {arm}"
    label += ", lora" * (record.get("lora") is True)
    label += " (control, λ = 0)" * record["control"]
    return label.replace("|", r"\|")


def paper_value(record: dict) -> float | None:
    """The paper's number for a record that names its `paper_table`; None where it prints none."""
    if not record.get("paper_table") or record["control"]:
        return None
    method = record.get("paper_method") or record["method"]
    where = {"lora": record.get("lora") is True, "dataset": record.get("paper_dataset")}
    for lam in (None, record.get("lam")):
        with suppress(ValueError):
            return paper.value(record["paper_table"], method, record["removed"], lam=lam, **where)
    return None


def _averages(records: list[dict]) -> list[dict]:
    """Table III's last column: a record for each model and seed that has a score for every task."""
    fields = ("method", "arm", "control", "removed", "seed", "lora", "surrogate", "lam")
    models: dict[tuple, dict[str, dict]] = {}
    for record in records:
        if record.get("paper_table") == "III":
            scored = models.setdefault(tuple(map(record.get, fields)), {})
            scored[record.get("dataset")] = record
    place = {"dataset": "Average", "paper_dataset": "Average", "metric": "mean", "note": ""}
    whole = [scored for scored in models.values() if scored.keys() == set(glue.COLUMNS)]
    for scored in whole:
        place["value"] = glue.average({task: one["value"] for task, one in scored.items()})
        scored["Average"] = scored[glue.COLUMNS[0]] | place
    return [scored["Average"] for scored in whole]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g}%"


def _refusal(frame: pandas.DataFrame) -> str:
    """Why it is not printed, or "": without control, training's gain would be the method's."""
    controlled = frame[frame.removed > 0].groupby("removed").control.any()
    bare = ", ".join(map(_percent, controlled[~controlled].index))
    if bare or not frame.control.any():
        return f"no control row (λ = 0, all else equal){bare and f' at {bare} removed'}."
    twice = frame[frame.duplicated(["row", "removed", "seed"])]
    if twice.empty:
        return ""
    first = twice.iloc[0]
    where = f"{first.row} at {_percent(first.removed)} removed, seed {first.seed}"
    return f"two values for {where}: record what sets them apart as their arm."


def _notes(frame: pandas.DataFrame, about: dict) -> list[str]:
    """Sentences below a table: what was removed, what its records note, whose models these are."""
    counted = []
    for removed, shares in frame[frame.removed > 0].groupby("removed").achieved:
        ends = dict.fromkeys(f"{share:.1%}" for share in (shares.min(), shares.max()))
        counted.append(f"{_percent(removed)} asked, {' to '.join(ends)}")
    notes = [f"{SPREAD} Removed as achieved: {'; '.join(counted)}." if counted else SPREAD]
    if "note" in frame:
        places = frame.row + " at " + frame.removed.map(_percent)
        for note, rows in places.groupby(frame.note.replace("", None)):
            notes.append(f"Note: {note}: {', '.join(dict.fromkeys(rows))}.")
    if frame.paper.notna().any():
        theirs = paper.table(frame.paper_table.iloc[0])
        data = sorted({name.partition(" / ")[0] for name in theirs.dataset})
        setting = f"{', '.join(sorted(set(theirs.model)))} on {', '.join(data)}"
        ours = " on ".join(about.get(name) or f"{name} not recorded" for name in ("model", "data"))
        notes.append(f"Ours: {ours}. The paper: {setting}. Compare sign and order, not size.")
    return notes


def _table(notebook: str, about: dict, records: list[dict]) -> list[str]:
    frame, first = pandas.DataFrame(records), records[0]
    frame["removed"] = frame.removed.round(7)  # 0.1 + 0.2 is 0.3
    frame["row"] = list(map(_label, records))
    frame["paper"] = pandas.Series(map(paper_value, records), dtype=float)
    words = [str(first[name]) for name in SPLIT if first.get(name) and name != "paper_table"]
    better = "higher" if first["higher_is_better"] else "lower"
    title = f"### {notebook}: {', '.join(words)} ({better} is better)"
    if frame.paper.notna().any():
        title += f", beside Table {first['paper_table']} of the paper"
    refusal = _refusal(frame)
    if refusal:
        return [title, "", f"Not printed: it has {refusal}", ""]
    rows: dict[str, dict[str, str]] = {}
    for (row, removed), cell in frame.groupby(["row", "removed"], sort=False):
        spread = f" ± {cell.value.std():.2g}" if len(cell) > 1 else ""
        text = f"{cell.value.mean():.4g}{spread} ({len(cell)})"
        rows.setdefault(row, {})[removed] = text
        theirs, printed = rows.setdefault(f"*the paper: {row}*", {}), cell.paper.iloc[0]
        theirs[removed] = None if pandas.isna(printed) else f"*{printed:g}*"
    wide = pandas.DataFrame.from_dict(rows, orient="index").dropna(how="all").fillna("")
    wide = wide[sorted(wide)].rename(columns=_percent)
    wide = wide.rename_axis("parameters removed")
    table = wide.to_markdown(disable_numparse=True).splitlines()
    return [title, "", *table, "", *_notes(frame, about), ""]


def markdown(notebook: str, about: dict, records: list[dict]) -> list[str]:
    """A table for each value of the fields in SPLIT, the paper's rows in italics, line by line.

    A refused table has the reason in its place. about: `model` and `data` of the runs.
    """
    groups: dict[tuple, list[dict]] = {}
    for record in [*records, *_averages(records)]:
        groups.setdefault(tuple(map(record.get, SPLIT)), []).append(record)
    return [line for group in groups.values() for line in _table(notebook, about, group)]
