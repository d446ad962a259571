"""What the paper printed: its tables as data.

Source: Low-Rank Prehab, arXiv 2512.01980v1, Tables II to V, in `paper_tables.json` beside this
file: 246 records, one a printed number. A removed share above 0 is marked `ratio_label:
"inferred"`: the text source of the paper scatters the labels of its multi-row cells, and they were
put back by row order. The printed changes and the running text confirm it.

These numbers come from other models and data than a run of yours. Compare sign and order, never
size.
"""

import json
import math
from functools import cache
from pathlib import Path

import pandas

# Our method key -> the row name in the paper. `lora=True` picks the dagger rows of the same name.
ROWS = {"original": "Original", "svd": "SVD", "fwsvd": "FWSVD", "gfwsvd": "GFWSVD", "asvd": "ASVD"}
ROWS |= {"svd_llm": "SVD-LLM", "prehab": "Prehab-SVD"}
KEYS = {row: key for key, row in ROWS.items()}
_OPTIONAL = ("dataset", "lam", "metric")


@cache
def _load() -> tuple[dict, ...]:
    text = Path(__file__).with_name("paper_tables.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["records"])


def records(name: str | None = None) -> list[dict]:
    """The records as stored, of one table or of all; the file's head explains the fields.

    Raises ValueError for a table the paper does not have as numbers.
    """
    names = sorted({record["table"] for record in _load()})
    if name is not None and name not in names:
        choice = f"choose one of {', '.join(names)}"
        raise ValueError(f"table = {name!r} is not a table of numbers in the paper: {choice}")
    return [dict(record) for record in _load() if name in (None, record["table"])]


def named(record: dict) -> dict:
    """A record in our words: `method` our key, `row` the paper's name, `removed` the fraction."""
    row = record["method"]
    rest = {name: value for name, value in record.items() if name != "ratio_removed"}
    return rest | {"method": KEYS[row], "row": row, "removed": record["ratio_removed"]}


def table(name: str) -> pandas.DataFrame:
    """One printed table, a row a number, with the fields of `named` as columns.

    Top-1 in percent, perplexity plain, GLUE scores between 0 and 1.
    """
    return pandas.DataFrame(map(named, records(name)))


def value(
    table: str, method: str, removed: float, lora=False, lam=None, dataset=None, metric=None
) -> float:
    """One printed number, for example value("II", "prehab", 0.4) -> 71.92.

    table: "II" to "V". method: a key of ROWS; "original" is the uncompressed model, at removed = 0.
    lora: the dagger row. lam, dataset, metric: needed only where they leave a choice, as in
    value("III", "prehab", 0.2, dataset="CoLA"). Raises ValueError where nothing matches, naming
    what the table has, and where more than one number does.
    """
    if method not in ROWS:
        choice = f"choose one of {', '.join(ROWS)}"
        raise ValueError(f"method = {method!r} has no row in the paper: {choice}")
    wanted = {"method": method, "removed": removed, "lora": lora}
    wanted |= {"dataset": dataset, "lam": lam, "metric": metric}
    matching = [named(record) for record in records(table)]
    for field, want in wanted.items():
        if want is None and field in _OPTIONAL:
            continue
        choices = _choices(matching, field)
        matching = [record for record in matching if _same(record[field], want)]
        if not matching:
            lacks = f"Table {table} has no number for {field} = {want!r} here"
            raise ValueError(f"{lacks}: it has {choices}")
    if len(matching) > 1:
        field = next(name for name in _OPTIONAL if ", " in _choices(matching, name))
        several = f"{len(matching)} numbers for {method!r} at removed = {removed}"
        choice = f"say which {field} ({_choices(matching, field)})"
        raise ValueError(f"Table {table} has {several}: {choice}")
    return matching[0]["value"]


def _same(printed, want) -> bool:
    if isinstance(printed, str):
        return want in (printed, _short(printed))
    if isinstance(printed, float) and isinstance(want, (int, float)):
        return math.isclose(printed, want, abs_tol=1e-9)  # 1 - 0.8 asks for the row of 0.2
    return printed == want


def _short(text: str) -> str:
    # "GLUE dev / CoLA" answers to "CoLA" as well
    return text.split(" / ")[-1]


def _choices(matching: list[dict], field: str) -> str:
    return ", ".join(dict.fromkeys(_short(str(record[field])) for record in matching))
