"""What the runs of a plan will take, told before they start: measured, or from a table of
measurements, or unknown.

A price is of a run that was the same, or differed only in parameters that hardly change the cost
(`SAME_COST`; it says so). No number is made up: where nothing is known, nothing is said.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from prehab_lib.runs import plan
from prehab_lib.runs.plan import Price, Run
from prehab_lib.runs.slots import Slots

TABLE = Path(__file__).with_name("prices.json")
SAME_COST = {
    "alpha",
    "base_lr",
    "data_root",
    "lam",
    "lams",
    "lr",
    "seed",
    "seeds",
    "task",
    "workers",
}
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Known:
    """A run that somebody measured."""

    params: dict
    gpu: bool
    price: Price


def priced(planned: list[Run], root: Path) -> list[Run]:
    """The runs with what is known of their price. root: the folder that holds runs/."""
    if not planned:
        return []
    profile, names = planned[0].profile, {run.notebook.stem for run in planned}
    known: dict[str, list[Known]] = {name: [] for name in names}
    for name, witness in (*_measured(root / "runs", profile), *_from_table(root, profile, names)):
        known.get(name, []).append(witness)
    return [replace(run, price=_price(run, known[run.notebook.stem])) for run in planned]


def _price(run: Run, known: list[Known]) -> Price:
    """Of the nearest witness, the measured before the table's."""
    near = []
    for witness in known:
        other = _other(run.params, witness.params)
        if other is not None and witness.gpu == bool(run.gpu):
            near.append((len(other), other, witness.price))
    if not near:
        return Price()
    _, other, price = min(near, key=lambda each: each[0])  # the first of equals
    return (
        replace(price, source=f"{price.source} with other {', '.join(sorted(other))}")
        if other
        else price
    )


def _other(wanted: dict, had: dict) -> set[str] | None:
    """Names of parameters that differ; None where one of them may change the cost."""
    if wanted.keys() != had.keys():
        return None
    other = {name for name in wanted if wanted[name] != had[name]}
    alike = all(
        not isinstance(wanted[name], list) or len(wanted[name]) == len(had[name]) for name in other
    )
    return other if other <= SAME_COST and alike else None


def _measured(runs: Path, profile: str) -> list[tuple[str, Known]]:
    """Notebook and facts of every finished run, of this profile first: the others may have the same
    parameters.
    """
    found = []
    for file in sorted(
        runs.glob("*/*/run.json"), key=lambda file: (file.parts[-3] != profile, file)
    ):
        run, about = _json(file), _json(file.with_name("result.json")).get("about", {})
        on_gpu = str(about.get("device", "")).startswith("cuda")
        device_gb = (
            round(about["peak_memory_mb"] / 1024, 1)
            if on_gpu and "peak_memory_mb" in about
            else None
        )
        if "seconds" in run and "params" in run:
            price = Price(
                round(run["seconds"] / 60, 1),
                run.get("peak_memory_mb") or None,
                device_gb,
                "measured",
            )
            found.append(
                (
                    run.get("notebook", ""),
                    Known(run["params"], bool(on_gpu or run.get("gpu")), price),
                )
            )
    return found


def _json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _from_table(root: Path, profile: str, names: Collection[str]) -> list[tuple[str, Known]]:
    """What the table says of the profile's runs, and of the notebooks' defaults, as the params
    files stand.
    """
    tables = json.loads(TABLE.read_text(encoding="utf-8"))["profiles"]
    return [
        (name, Known(params, False, Price(**tables[listed][name], source="table")))
        for listed in dict.fromkeys((profile, "smoke"))
        for name, runs in plan.expected(root, listed, names & tables.get(listed, {}).keys()).items()
        for params in runs.values()
    ]


def minutes(planned: list[Run], slots: Slots) -> float:
    """Wall time of a plan, by going through it as the pool does. A run without a price counts as
    nothing.
    """
    waiting, ends, done, now = list(planned), {}, set(), 0.0
    before_last = {run.name for run in planned if not run.last}
    there = {run.name for run in planned}
    while waiting or ends:
        for run in list(waiting):
            ready = set(run.needs) & there <= done and (not run.last or before_last <= done)
            if ready and slots.take(run):
                waiting.remove(run)
                ends[run.name] = (now + (run.price.minutes or 0.0), run)
        name = min(ends, key=lambda each: ends[each][0])
        now, run = ends.pop(name)
        slots.leave(run)
        done.add(name)
    return now


def total(planned: list[Run], stored: Collection[str], slots: Slots) -> str:
    """One line: "12 runs, about 35 minutes two at a time, 3 not priced"."""
    left = [run for run in planned if run.name not in stored]
    counted = f"{len(planned)} run{'s' * (len(planned) != 1)}"
    if len(left) < len(planned):
        counted = f"{len(left)} of {counted} to do"
    priced_ones = [run for run in left if run.price.minutes is not None]
    if not priced_ones:
        return f"{counted}, not priced"
    width = min(slots.width, len(left))
    at_once = f" {WORDS[width] if width < len(WORDS) else width} at a time" if len(left) > 1 else ""
    told, unknown = f"{_spoken(minutes(left, slots))}{at_once}", len(left) - len(priced_ones)
    if unknown > len(priced_ones):  # a small sum of few would read like the price of all
        return f"{counted}, {unknown} not priced, the others {told}"
    return f"{counted}, {told}{f', {unknown} not priced' * (unknown > 0)}"


def _spoken(wall: float) -> str:
    if wall < 1:
        return "less than a minute"
    if wall < 100:
        return f"about {wall:.0f} minute{'s' * (round(wall) != 1)}"
    return f"about {wall / 60:.1f} hours"
