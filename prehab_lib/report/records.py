"""Scores with the birth certificate of their run. Outside a run they only fill a table."""

import math
from contextlib import suppress
from pathlib import Path

import pandas

from prehab_lib.report import effects
from prehab_lib.runs.certificate import birth_certificate, peak_memory_mb, run_dir, write_json

# What every record has, and its type.
FIELDS = {
    "method": "text",
    "removed": "number",  # fraction of the compressed layers' parameters taken away, as asked
    "achieved": "number",  # the same, as recounted from the modules; 0 for the uncompressed model
    "metric": "text",
    "value": "number",
    "higher_is_better": "boolean",
    "seed": "number",
    "control": "boolean",  # made with λ = 0, the same steps, data, optimiser, trained parameters
    "seconds": "number",  # wall time behind this row
}
TYPES = {str: "text", bool: "boolean", int: "number", float: "number"}


def _plain(name: str, value):
    """A Python scalar: scalars of NumPy and torch unwrapped, NaN and infinities refused."""
    if hasattr(value, "item"):
        with suppress(ValueError, RuntimeError):  # of several numbers: refused below
            value = value.item()
    if value is not None and type(value) not in TYPES:
        kind = type(value).__name__
        raise ValueError(f"record: {name} must be text, a number, a boolean or None, not {kind}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"record: {name} is {value}: a score must be a number, find the cause")
    return value


class Results:
    """The scores of one notebook run.

    protocol: how they were taken, a sentence. about: facts of all; reports print `model`, `data`.
    """

    def __init__(self, protocol: str, device="cpu", **about):
        self.protocol, self.device = protocol, str(device)
        facts = {name: _plain(name, value) for name, value in about.items()}
        self.about = birth_certificate(device) | facts
        self.records: list[dict] = []
        self.curves: list[dict] = []
        self._kinds = dict(FIELDS)

    def add(self, **record) -> None:
        """Record one score: a value for each of FIELDS, and further columns such as lam=0.1.

        A column keeps its type. Raises ValueError naming the field that is missing or wrong.
        """
        record = {name: _plain(name, record.get(name)) for name in {**FIELDS, **record}}
        for name, value in record.items():
            if value is None and name not in FIELDS:
                continue
            expected = self._kinds.setdefault(name, TYPES.get(type(value)))
            if TYPES.get(type(value)) != expected:
                raise ValueError(f"record: {name} must be a {expected} in every row, not {value!r}")
        if not 0 <= record["removed"] < 1:
            raise ValueError(f"record: removed must be a fraction in [0, 1): {record['removed']}")
        if not isinstance(record["seed"], int) or record["seconds"] < 0:
            raise ValueError("record: seed must be an integer, and seconds must not be negative")
        self.records.append(record)

    def curve(self, seed: int, removed: list, values: list, metric: str, dataset: str = "") -> None:
        """Record the score of the untouched model under SVD-LLM by fraction removed, 0 included.

        Effects are read off it in ratio points. Raises ValueError where it is no curve.
        """
        merits = [float(effects.merit(metric, value)) for value in values]
        effects.Curve(removed, merits)
        fractions = [float(fraction) for fraction in removed]
        curve = {"dataset": dataset, "seed": seed, "removed": fractions, "merits": merits}
        self.curves.append(curve)

    def frame(self) -> pandas.DataFrame:
        """One row a score, in the order they were added."""
        return pandas.DataFrame(self.records, columns=None if self.records else list(FIELDS))

    def save(self) -> Path | None:
        """Write result.json into the run's folder, where there is one."""
        folder = run_dir()
        if folder is None:
            return None
        about = self.about | {"peak_memory_mb": peak_memory_mb(self.device)}
        content = {"about": about, "protocol": self.protocol, "records": self.records}
        content["curves"] = self.curves
        write_json(folder / "result.json", content)
        return folder / "result.json"
