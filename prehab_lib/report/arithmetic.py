"""The paper's own sums, done again from its printed tables.

Each check compares what the paper prints with what its other numbers give. `KNOWN` lists the
disagreements that the errata explain; any other one means that `paper_tables.json` is no longer
what was printed, and the audit stops there.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import combinations

from prehab_lib.report import paper
from prehab_lib.tasks import glue

# Of every number with its address: a digit that no sum depends on is guarded by this alone.
CHECKSUM = "02f9a435092333f645c3dbb58540dc4b0132ba07e75c014328f6bb34bfc9b9a1"
ROUNDING = 1e-9  # a hair for binary fractions, beside half a unit in the last printed place

# LLaMA-7B: 32 blocks of four (4096, 4096) and three (11008, 4096) matrices, which are compressed;
# the rest is not.
LLAMA_BLOCKS = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
LLAMA_REST = 6_738_415_616 - LLAMA_BLOCKS
BYTES, GIB = 2, 2**30  # 16 bits a number


@dataclass(frozen=True)
class Check:
    """A printed number beside the same from others. place: table, removed, what tells it apart."""

    place: tuple
    printed: float
    computed: float
    agrees: bool


def _checks(compute: Callable[[list[dict]], Iterator[tuple]]):
    """Checks from (place, printed, computed, how far apart the two may be)."""

    @wraps(compute)
    def checks(records: list[dict]) -> list[Check]:
        return [
            Check(place, printed, computed, abs(computed - printed) <= unit + ROUNDING)
            for place, printed, computed, unit in compute(records)
        ]

    return checks


def _value(records: list[dict], table: str, row: str, removed: float, **where) -> float:
    wanted = {"table": table, "method": row, "ratio_removed": removed, "lora": False} | where
    (match,) = (record for record in records if wanted.items() <= record.items())
    return match["value"]


def _rows_of_glue(records: list[dict]) -> dict[tuple, dict[str, float]]:
    """(row, removed) -> column -> score, of Table III."""
    rows: dict[tuple, dict] = {}
    for record in records:
        if record["table"] == "III":
            scores = rows.setdefault((record["method"], record["ratio_removed"]), {})
            scores[record["dataset"].split(" / ")[-1]] = record["value"]
    return rows


@_checks
def printed_changes(records):
    """The change printed beside a value, against SVD-LLM of the same row group."""
    for record in records:
        if record["printed_change"] is not None:
            table, removed, value = record["table"], record["ratio_removed"], record["value"]
            alike = {name: record[name] for name in ("lora", "dataset")}
            base = _value(records, table, "SVD-LLM", removed, **alike)
            per_cent = record["change_kind"].startswith("percent")
            computed = 100 * (value / base - 1) if per_cent else value - base
            digits = 1 if per_cent else {"III": 3}.get(table, 2)
            mark = f"λ = {record['lam']:g}" + (" †" if record["lora"] else "")
            place = (table, removed, record["dataset"], mark)
            yield place, record["printed_change"], computed, 0.5 / 10**digits


@_checks
def averages(records):
    """Table III's last column against the mean of eight tasks, MNLI's two columns merged first."""
    for (row, removed), scores in _rows_of_glue(records).items():
        printed = scores.pop("Average")
        # Entries and average are rounded to three digits each: half a unit, twice.
        yield ("III", removed, row), printed, glue.average(scores), 0.001


@_checks
def repeats(records):
    """Table V repeats Table II where λ = 0.1, and its row of SVD-LLM: equal to the last digit."""
    for record in records:
        if record["table"] == "V" and record["lam"] in (None, 0.1):
            row, removed = record["method"], record["ratio_removed"]
            yield ("V", removed, row), record["value"], _value(records, "II", row, removed), 0


@_checks
def memory_labels(records):
    """Table IV's gigabytes against LLaMA-7B's weights at 16 bits, in 2³⁰ bytes, to one per cent."""
    labels = {(record["ratio_removed"], record.get("memory_label")) for record in records}
    for removed, label in sorted(pair for pair in labels if pair[1]):
        printed = float(label.removesuffix(" GB"))
        computed = BYTES * (LLAMA_REST + (1 - removed) * LLAMA_BLOCKS) / GIB
        yield ("IV", removed, "memory"), printed, computed, 0.01 * printed


@_checks
def lora_gain(records):
    """The text's gain of 8.61 points after LoRA at 60 % removed, against Table II."""
    rows = ("Prehab-SVD", "SVD-LLM")
    prehab, base = (_value(records, "II", row, 0.6, lora=True) for row in rows)
    yield ("II", 0.6, "text, †"), 8.61, prehab - base, 0.005


@_checks
def strongest_lambda(records):
    """The text's λ = 10 that gains most at the highest compression, against Table V there."""
    at_60 = {lam: _value(records, "V", "Prehab-SVD", 0.6, lam=lam) for lam in (0.1, 5.0, 10.0)}
    yield ("V", 0.6, "text, best λ"), 10.0, max(at_60, key=at_60.get), 0


@_checks
def runtime(records):
    """The text's 7.5 minutes for the ViT, against 500 steps of 0.9 seconds."""
    yield ("text", "ViT", "minutes"), 7.5, 500 * 0.9 / 60, 0.05


_SUMS = (printed_changes, averages, repeats, memory_labels, lora_gain, strongest_lambda, runtime)
CHECKS = {check.__name__: check for check in _SUMS}

# What the paper got wrong, as the errata say.
KNOWN = {
    ("IV", 0.4, "C4", "λ = 0.001"),
    ("III", 0.0, "Original"),
    ("III", 0.6, "FWSVD"),
    ("II", 0.6, "text, †"),
    ("V", 0.6, "text, best λ"),
}


def twins(records: list[dict]) -> list[tuple]:
    """(row, removed, task, task, value): equal scores above 0 of one row of Table III."""
    pairs = []
    for (row, removed), scores in _rows_of_glue(records).items():
        del scores["Average"]
        for task, other in combinations(scores, 2):
            if scores[task] == scores[other] > 0:
                pairs.append((row, removed, task, other, scores[task]))
    return pairs


def verify(records: list[dict] | None = None) -> None:
    """Raises ValueError where the printed tables are not as transcribed, naming a broken sum."""
    records = paper.records() if records is None else records
    if hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest() == CHECKSUM:
        return
    checks = [check for compute in CHECKS.values() for check in compute(records)]
    wrong = [check for check in checks if not check.agrees and check.place not in KNOWN]
    sentence = "paper_tables.json is not as the paper printed it"
    if wrong:
        sentence += f": Table {wrong[0].place[0]} prints {wrong[0].printed:g}"
        sentence += f" where its other numbers give {wrong[0].computed:.4g}"
    raise ValueError(f"{sentence}; restore the file")
