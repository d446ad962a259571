"""What the paper printed: its tables as data, and its errata.

Source: Low-Rank Prehab, arXiv 2512.01980v1, Tables II to V, in `paper_tables.json` beside this
file: 246 records, one a printed number.  A removed share above 0 is marked `ratio_label:
"inferred"`: the text source of the paper scatters the labels of its multi-row cells, and they were
put back by row order.  The printed changes and the running text confirm it.

These numbers come from other models and data than a run of yours.  Compare sign and order, never
size.
"""

import json
import math
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

from prehab_lib.report.errata import ERRATA, Erratum

if TYPE_CHECKING:
    import pandas

__all__ = ["ERRATA", "ROWS", "Erratum", "records", "table", "value"]

# Our method key -> the row name in the paper.  `lora=True` picks the dagger rows of the same name.
ROWS = {
    "original": "Original",
    "svd": "SVD",
    "fwsvd": "FWSVD",
    "gfwsvd": "GFWSVD",
    "asvd": "ASVD",
    "svd_llm": "SVD-LLM",
    "prehab": "Prehab-SVD",
}
_KEYS = {row: key for key, row in ROWS.items()}
_OPTIONAL = ("dataset", "lam", "metric")
_FILE = Path(__file__).with_name("paper_tables.json")


@cache
def _load() -> tuple[dict, ...]:
    return tuple(json.loads(_FILE.read_text(encoding="utf-8"))["records"])


def records(name: str | None = None) -> list[dict]:
    """The records as stored (fields are explained in the file's head): of one table, or of all when
    `name` is None.

    Raises ValueError for a table the paper does not have as numbers.
    """
    everything = _load()
    known = sorted({record["table"] for record in everything})
    if name is not None and name not in known:
        raise ValueError(
            f"table = {name!r} is not a table of numbers in the paper: choose one of {', '.join(known)}"
        )
    return [dict(record) for record in everything if name in (None, record["table"])]


def table(name: str) -> "pandas.DataFrame":
    """One printed table, a row a number.

    Columns: `method` (our key), `row` (the paper's name), `removed` (fraction of parameters taken
    away), `lora` (dagger row), `lam`, `dataset`, `metric`, `value` and the other fields of the
    file.  Top-1 in percent, perplexity plain, GLUE scores between 0 and 1.  Raises ValueError for
    an unknown table.
    """
    import pandas

    frame = pandas.DataFrame(records(name)).rename(
        columns={"method": "row", "ratio_removed": "removed"}
    )
    frame.insert(0, "method", frame["row"].map(_KEYS))
    first = [
        "method",
        "row",
        "removed",
        "lora",
        "lam",
        "dataset",
        "metric",
        "value",
        "printed_change",
    ]
    return frame[first + [column for column in frame.columns if column not in first]]


def value(
    table: str,
    method: str,
    removed: float,
    lora: bool = False,
    lam: float | None = None,
    dataset: str | None = None,
    metric: str | None = None,
) -> float:
    """One printed number, for example value("II", "prehab", 0.4) -> 71.92.

    table: "II" to "V".  method: a key of ROWS; "original" is the uncompressed model, at removed =
    0.  lora: the dagger row. lam, dataset, metric: needed only where they leave a choice, as in
    value("III", "prehab", 0.2, dataset="CoLA"). Raises ValueError where nothing matches, naming
    what the table has, and where more than one number does.
    """
    if method not in ROWS:
        raise ValueError(
            f"method = {method!r} has no row in the paper: choose one of {', '.join(ROWS)}"
        )
    found = records(table)
    wanted = {"method": ROWS[method], "ratio_removed": removed, "lora": lora}
    wanted |= {"dataset": dataset, "lam": lam, "metric": metric}
    for field, want in wanted.items():
        if want is None and field in _OPTIONAL:
            continue
        known = _seen(found, field)
        found = [record for record in found if _same(record[field], want)]
        if not found:
            argument, want = (
                ("method", method) if field == "method" else (field.removeprefix("ratio_"), want)
            )
            raise ValueError(
                f"Table {table} has no number for {argument} = {want!r} here: it has {known}"
            )
    if len(found) > 1:
        choice = next(field for field in _OPTIONAL if len({record[field] for record in found}) > 1)
        raise ValueError(
            f"Table {table} has {len(found)} numbers for {method!r} at removed = {removed}: "
            f"say which {choice} ({_seen(found, choice)})"
        )
    return found[0]["value"]


def _same(printed, want) -> bool:
    if isinstance(printed, str):
        return want in (printed, _short(printed))
    if isinstance(printed, float) and isinstance(want, Real):
        return math.isclose(printed, want, abs_tol=1e-9)  # 1 - 0.8 asks for the row of 0.2
    return printed == want


def _short(text: str) -> str:
    # "GLUE dev / CoLA" answers to "CoLA" as well
    return text.split(" / ")[-1]


def _seen(found: list[dict], field: str) -> str:
    entries = dict.fromkeys(record[field] for record in found)
    return ", ".join(_KEYS[entry] if field == "method" else _short(str(entry)) for entry in entries)
