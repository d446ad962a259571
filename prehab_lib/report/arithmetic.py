"""The paper's own sums, done again from its printed tables.

Each check compares what the paper prints with what its other numbers give. `KNOWN` lists the
disagreements that the errata explain; any other one means that `paper_tables.json` is no longer
what was printed, and the audit stops there.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    """One printed number beside the same number from others. place: table, removed, and what tells
    it apart.
    """

    place: tuple
    printed: float
    computed: float
    agrees: bool


def _find(records: Iterable[dict], table: str, method: str, removed: float, **where) -> float:
    wanted = {
        "table": table,
        "method": paper.ROWS[method],
        "ratio_removed": removed,
        "lora": False,
    } | where
    (found,) = (
        one["value"] for one in records if all(one[name] == value for name, value in wanted.items())
    )
    return found


def _near(one: float, other: float, unit: float) -> bool:
    return abs(one - other) <= unit + ROUNDING


def printed_changes(records: list[dict]) -> list[Check]:
    """The change printed beside a value, against SVD-LLM of the same row group: points, absolute,
    or per cent.
    """
    checks = []
    for one in (one for one in records if one["printed_change"] is not None):
        same = {name: one[name] for name in ("lora", "dataset")}
        base = _find(records, one["table"], "svd_llm", one["ratio_removed"], **same)
        per_cent = one["change_kind"].startswith("percent")
        computed = 100 * (one["value"] / base - 1) if per_cent else one["value"] - base
        digits = 1 if per_cent else {"III": 3}.get(one["table"], 2)
        mark = f"λ = {one['lam']:g}" + (" †" if one["lora"] else "")
        place = (one["table"], one["ratio_removed"], one["dataset"], mark)
        checks.append(
            Check(
                place,
                one["printed_change"],
                computed,
                _near(computed, one["printed_change"], 0.5 / 10**digits),
            )
        )
    return checks


def averages(records: list[dict]) -> list[Check]:
    """Table III's last column against the mean of eight tasks, the two MNLI columns merged first."""
    rows: dict[tuple, dict] = {}
    for one in (one for one in records if one["table"] == "III"):
        rows.setdefault((one["method"], one["ratio_removed"]), {})[
            one["dataset"].split(" / ")[-1]
        ] = one["value"]
    checks = []
    for (row, removed), scores in rows.items():
        printed = scores.pop("Average")
        computed = glue.average(scores)
        # Entries and average are rounded to three digits each: half a unit, twice.
        checks.append(
            Check(("III", removed, row), printed, computed, _near(computed, printed, 0.001))
        )
    return checks


def repeats(records: list[dict]) -> list[Check]:
    """Table V repeats Table II where λ = 0.1, and its row of SVD-LLM: equal to the last digit."""
    checks = []
    for one in (one for one in records if one["table"] == "V" and one["lam"] in (None, 0.1)):
        method = next(key for key, row in paper.ROWS.items() if row == one["method"])
        before = _find(records, "II", method, one["ratio_removed"])
        place = ("V", one["ratio_removed"], one["method"])
        checks.append(Check(place, one["value"], before, one["value"] == before))
    return checks


def memory_labels(records: list[dict]) -> list[Check]:
    """Table IV's gigabytes against LLaMA-7B's weights at 16 bits, in units of 2³⁰ bytes, to one per
    cent.
    """
    checks = []
    labels = {
        one["ratio_removed"]: one["memory_label"] for one in records if one.get("memory_label")
    }
    for removed, label in sorted(labels.items()):
        printed = float(label.removesuffix(" GB"))
        computed = BYTES * (LLAMA_REST + (1 - removed) * LLAMA_BLOCKS) / GIB
        checks.append(
            Check(
                ("IV", removed, "memory"),
                printed,
                computed,
                _near(computed, printed, 0.01 * printed),
            )
        )
    return checks


def lora_gain(records: list[dict]) -> list[Check]:
    """The text's gain of 8.61 points after LoRA at 60 % removed, against Table II."""
    computed = _find(records, "II", "prehab", 0.6, lora=True) - _find(
        records, "II", "svd_llm", 0.6, lora=True
    )
    return [Check(("II", 0.6, "text, †"), 8.61, computed, _near(computed, 8.61, 0.005))]


def strongest_lambda(records: list[dict]) -> list[Check]:
    """The text's λ = 10 that gains most at the highest compression, against the best row of Table V
    there.
    """
    at_60 = {lam: _find(records, "V", "prehab", 0.6, lam=lam) for lam in (0.1, 5.0, 10.0)}
    best = max(at_60, key=at_60.get)
    return [Check(("V", 0.6, "text, best λ"), 10.0, best, best == 10.0)]


def runtime(records: list[dict]) -> list[Check]:
    """The text's 7.5 minutes for the ViT, against 500 steps of 0.9 seconds."""
    return [
        Check(("text", "ViT", "minutes"), 7.5, 500 * 0.9 / 60, _near(500 * 0.9 / 60, 7.5, 0.05))
    ]


CHECKS: dict[str, Callable[[list[dict]], list[Check]]] = {
    "printed_changes": printed_changes,
    "averages": averages,
    "repeats": repeats,
    "memory_labels": memory_labels,
    "lora_gain": lora_gain,
    "strongest_lambda": strongest_lambda,
    "runtime": runtime,
}

# What the paper got wrong, as the errata say.
KNOWN = {
    ("IV", 0.4, "C4", "λ = 0.001"),
    ("III", 0.0, "Original"),
    ("III", 0.6, "FWSVD"),
    ("II", 0.6, "text, †"),
    ("V", 0.6, "text, best λ"),
}


def twins(records: list[dict]) -> list[tuple]:
    """(row, removed, task, task, value): two tasks of one row of Table III with the same score
    above 0, to three digits.
    """
    rows: dict[tuple, dict] = {}
    for one in (
        one for one in records if one["table"] == "III" and not one["dataset"].endswith("Average")
    ):
        rows.setdefault((one["method"], one["ratio_removed"]), {})[
            one["dataset"].split(" / ")[-1]
        ] = one["value"]
    return [
        (row, removed, task, other, scores[task])
        for (row, removed), scores in rows.items()
        for number, task in enumerate(scores)
        for other in list(scores)[number + 1 :]
        if scores[task] == scores[other] > 0
    ]


def copied(records: list[dict]) -> list[dict]:
    """The numbers of Table IV that equal those of SVD-LLM's own Table 1, at a removed share above
    0.
    """
    return [
        one
        for one in records
        if one["ratio_removed"] > 0 and any("copied" in check for check in one["checks"])
    ]


def verify(records: list[dict] | None = None) -> None:
    """Raises ValueError where the printed tables are not what was transcribed, naming a sum that no
    longer agrees.
    """
    records = paper.records() if records is None else records
    if hashlib.sha256(json.dumps(records, sort_keys=True).encode()).hexdigest() == CHECKSUM:
        return
    wrong = [check for checks in CHECKS.values() for check in checks(records) if not check.agrees]
    new = [check for check in wrong if check.place not in KNOWN]
    told = (
        f": Table {new[0].place[0]} prints {new[0].printed:g} where its other numbers give {new[0].computed:.4g}"
        if new
        else ""
    )
    raise ValueError(f"paper_tables.json is not as the paper printed it{told}; restore the file")
