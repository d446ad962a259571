"""The paper's own sums, done again from its printed tables: each beside what the paper prints."""

import hashlib
import json
from dataclasses import dataclass
from itertools import combinations

from prehab_lib.report import paper
from prehab_lib.tasks import glue

# Of every number with its address, also of digits that no sum depends on.
CHECKSUM = "02f9a435092333f645c3dbb58540dc4b0132ba07e75c014328f6bb34bfc9b9a1"
ROUNDING = 1e-9  # a hair for binary fractions, beside half a unit in the last printed place

# LLaMA-7B: 32 blocks of four (4096, 4096) and three (11008, 4096) matrices; the rest stays whole.
LLAMA_BLOCKS = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
LLAMA_REST = 6_738_415_616 - LLAMA_BLOCKS
BYTES, GIB = 2, 2**30  # 16 bits a number

# What the paper got wrong, as the errata say; any other place means that the file was changed.
KNOWN = {("IV", 0.4, "C4", "λ = 0.001"), ("III", 0.0, "Original"), ("III", 0.6, "FWSVD")}
KNOWN |= {("II", 0.6, "text, †"), ("V", 0.6, "text, best λ")}


@dataclass(frozen=True)
class Check:
    """A printed number beside the same from others. place: table, removed, what tells it apart."""

    place: tuple
    printed: float
    computed: float
    agrees: bool


def _check(place: tuple, printed: float, computed: float, apart: float) -> Check:
    return Check(place, printed, computed, abs(computed - printed) <= apart + ROUNDING)


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


def printed_changes(records: list[dict]) -> list[Check]:
    """The change printed beside a value, against SVD-LLM of the same row group."""
    checks = []
    for record in records:
        if record["printed_change"] is None:
            continue
        table, removed, value = record["table"], record["ratio_removed"], record["value"]
        alike = {"lora": record["lora"], "dataset": record["dataset"]}
        base = _value(records, table, "SVD-LLM", removed, **alike)
        per_cent = record["change_kind"].startswith("percent")
        computed = 100 * (value / base - 1) if per_cent else value - base
        digits = 1 if per_cent else {"III": 3}.get(table, 2)
        mark = f"λ = {record['lam']:g}" + (" †" if record["lora"] else "")
        place = (table, removed, record["dataset"], mark)
        checks.append(_check(place, record["printed_change"], computed, 0.5 / 10**digits))
    return checks


def averages(records: list[dict]) -> list[Check]:
    """Table III's last column against the mean of eight tasks, MNLI's two columns merged first."""
    checks = []
    for (row, removed), scores in _rows_of_glue(records).items():
        printed = scores.pop("Average")
        # Entries and average are rounded to three digits each: half a unit, twice.
        checks.append(_check(("III", removed, row), printed, glue.average(scores), 0.001))
    return checks


def repeats(records: list[dict]) -> list[Check]:
    """Table V repeats Table II where λ = 0.1, and its row of SVD-LLM: equal to the last digit."""
    checks = []
    for record in records:
        if record["table"] == "V" and record["lam"] in (None, 0.1):
            row, removed = record["method"], record["ratio_removed"]
            second = _value(records, "II", row, removed)
            checks.append(_check(("V", removed, row), record["value"], second, 0))
    return checks


def memory_labels(records: list[dict]) -> list[Check]:
    """Table IV's gigabytes against LLaMA-7B's weights at 16 bits, in 2³⁰ bytes, to one per cent."""
    checks = []
    labels = {(record["ratio_removed"], record.get("memory_label")) for record in records}
    for removed, label in sorted(pair for pair in labels if pair[1]):
        printed = float(label.removesuffix(" GB"))
        computed = BYTES * (LLAMA_REST + (1 - removed) * LLAMA_BLOCKS) / GIB
        checks.append(_check(("IV", removed, "memory"), printed, computed, 0.01 * printed))
    return checks


def lora_gain(records: list[dict]) -> list[Check]:
    """The text's gain of 8.61 points after LoRA at 60 % removed, against Table II."""
    base = _value(records, "II", "SVD-LLM", 0.6, lora=True)
    gain = _value(records, "II", "Prehab-SVD", 0.6, lora=True) - base
    return [_check(("II", 0.6, "text, †"), 8.61, gain, 0.005)]


def strongest_lambda(records: list[dict]) -> list[Check]:
    """Whether λ = 10 is the best of three at 60 %: one reading of the text on Table V."""
    at_60 = {lam: _value(records, "V", "Prehab-SVD", 0.6, lam=lam) for lam in (0.1, 5.0, 10.0)}
    return [_check(("V", 0.6, "text, best λ"), 10.0, max(at_60, key=at_60.get), 0)]


def runtime(records: list[dict]) -> list[Check]:
    """The text's 7.5 minutes for the ViT, against 500 steps of 0.9 seconds."""
    return [_check(("text", "ViT", "minutes"), 7.5, 500 * 0.9 / 60, 0.05)]


_SUMS = (printed_changes, averages, repeats, memory_labels, lora_gain, strongest_lambda, runtime)
CHECKS = {check.__name__: check for check in _SUMS}


def twins(records: list[dict]) -> list[tuple]:
    """(row, removed, task, task, value): equal scores above 0 of one row of Table III."""
    pairs = []
    for place, scores in _rows_of_glue(records).items():
        del scores["Average"]
        for (task, score), (other, second) in combinations(scores.items(), 2):
            if score == second > 0:
                pairs.append((*place, task, other, score))
    return pairs


def verify(records: list[dict] | None = None) -> None:
    """Raises ValueError where the printed tables are not as transcribed, naming a broken sum."""
    records = paper.records() if records is None else records
    if hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest() == CHECKSUM:
        return
    sentence = "paper_tables.json is not as the paper printed it"
    for check in (check for compute in CHECKS.values() for check in compute(records)):
        if not check.agrees and check.place not in KNOWN:
            sentence += f": Table {check.place[0]} prints {check.printed:g}"
            sentence += f" where its other numbers give {check.computed:.4g}"
            break
    raise ValueError(f"{sentence}; restore the file")
