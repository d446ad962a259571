"""What the paper printed, as data, and where it disagrees with its sources or itself (errata.yaml).

Source: Low-Rank Prehab, arXiv 2512.01980v1, Tables II to V: a record a printed number in
`paper_tables.json`. A removed share above 0 is marked "inferred": the text source scatters these
labels, and they were put back by row order, which printed changes and running text confirm.
"""

import html
import json
import re
from functools import cache
from pathlib import Path

import pandas
import yaml

from prehab_lib.inputs import check_choice

# Our method key -> the row name in the paper. `lora=True` picks the dagger rows of the same name.
ROWS = {"original": "Original", "svd": "SVD", "fwsvd": "FWSVD", "gfwsvd": "GFWSVD", "asvd": "ASVD"}
ROWS |= {"svd_llm": "SVD-LLM", "prehab": "Prehab-SVD"}
KEYS = {row: key for key, row in ROWS.items()}


@cache
def _load() -> tuple[dict, ...]:
    text = Path(__file__).with_name("paper_tables.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["records"])


def records(name: str | None = None) -> list[dict]:
    """The records as stored, of one table or all. Raises ValueError for a table without numbers."""
    if name is not None:
        check_choice("table", name, dict.fromkeys(record["table"] for record in _load()))
    return [dict(record) for record in _load() if name in (None, record["table"])]


def named(record: dict) -> dict:
    """A record in our words: `method` our key, `row` the paper's name, `removed` the fraction."""
    row = record["method"]
    rest = {name: value for name, value in record.items() if name != "ratio_removed"}
    return rest | {"method": KEYS[row], "row": row, "removed": record["ratio_removed"]}


def table(name: str) -> pandas.DataFrame:
    """One printed table, a row a number (top-1 in per cent), with the fields of `named`."""
    return pandas.DataFrame(map(named, records(name)))


_table = cache(table)


def value(
    table: str, method: str, removed: float, lora=False, lam=None, dataset: str | None = None
) -> float:
    """One printed number, for example value("II", "prehab", 0.4) -> 71.92.

    method: a key of ROWS; "original" is the uncompressed model, at removed = 0. lora: the dagger
    row. lam, dataset ("CoLA"): needed only where they leave a choice. Raises ValueError where no
    number matches, naming what the table has, and where several do.
    """
    matching = _table(table)
    matching = matching.assign(dataset=matching.dataset.str.split(" / ").str[-1])
    # Rounded: 1 - 0.8 asks for the row of 0.2.
    wanted = {"method": method, "removed": round(removed, 9), "lora": lora, "lam": lam}
    wanted["dataset"] = dataset.split(" / ")[-1] if dataset else None
    for field, want in wanted.items():
        if want is not None:
            check_choice(f"Table {table}: {field}", want, matching[field].unique())
            matching = matching[matching[field] == want]
    if len(matching) > 1:
        field = "dataset" if matching.dataset.nunique() > 1 else "lam"
        choices = ", ".join(matching[field].astype(str).unique())
        several = f"{len(matching)} numbers for {method!r} at removed = {removed}"
        raise ValueError(f"Table {table} has {several}: say which {field} ({choices})")
    return float(matching.value.iloc[0])


@cache
def errata() -> tuple[dict[str, str], ...]:
    """All rows in the order of the file: topic, item, printed, cited, released, ours."""
    text = Path(__file__).with_name("errata.yaml").read_text(encoding="utf-8")
    topics = yaml.safe_load(text).items()
    return tuple({"topic": topic} | row for topic, several in topics for row in several)


def errata_html(topic: str | None = None) -> str:
    """The errata of one topic, or all, as an HTML table. Raises ValueError for another topic."""
    if topic is not None:
        check_choice("topic", topic, dict.fromkeys(row["topic"] for row in errata()))
    heads = {"item": "item", "printed": "as printed", "cited": "as cited"}
    heads |= {"released": "as released", "ours": "what we do"}
    lines = []
    for row in [heads, *(row for row in errata() if topic in (None, row["topic"]))]:
        tag = "th" if row is heads else "td"
        opening = f'<{tag} style="text-align: left; vertical-align: top; white-space: normal">'
        # ‖M‖_F and ‖M‖_* get a real subscript; nuclear_ratio stays as it is
        texts = [re.sub(r"_([*F2X])", r"<sub>\1</sub>", html.escape(row[name])) for name in heads]
        lines.append("".join(f"{opening}{text}</{tag}>" for text in texts))
    return "\n".join(["<table>", *(f"<tr>{line}</tr>" for line in lines), "</table>"])
