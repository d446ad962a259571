"""What a run leaves behind: scores, each with the birth certificate of the run that made it.

Inside a run of `python -m prehab_lib run` the runner says where to write (PREHAB_RUN_DIR). Without
it, in JupyterLab or under nbval, nothing is written: the same notebook cell then only fills a table
in memory.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

VERSIONED = ("torch", "timm", "transformers", "peft", "numpy")
REPOSITORY = Path(__file__).resolve().parents[2]
# Only these decide numbers: a changed figure or report does not make the code "dirty".
CODE = ("prehab_lib", "notebooks", "params", "pyproject.toml", "requirements.lock")


def run_dir() -> Path | None:
    """The folder the runner asks this notebook to write to; None where no runner asks."""
    folder = os.environ.get("PREHAB_RUN_DIR")
    return Path(folder) if folder else None


def profile() -> str:
    """Name of the profile ("smoke" where no runner says: the defaults of a notebook are the smoke
    profile).
    """
    return os.environ.get("PREHAB_PROFILE") or "smoke"


def write_json(path: Path, content) -> None:
    """Write a JSON file in one step: a reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _commit() -> str | None:
    """The commit of the checkout, "+dirty" where its code differs from it; None outside a checkout."""
    top = _git("rev-parse", "--show-toplevel")
    if (
        top is None or Path(top).resolve() != REPOSITORY
    ):  # installed inside somebody else's repository
        return None
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD") or "no commit yet"
    changed = _git(
        "status", "--porcelain", "--", *(name for name in CODE if (REPOSITORY / name).exists())
    )
    return f"{commit}+dirty" if changed else commit


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _threads() -> int:
    if torch := sys.modules.get("torch"):
        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else os.cpu_count() or 1


def peak_memory_mb(device="cpu") -> int:
    """Largest memory (MB = 2**20 bytes) this process has held so far, on the device where that is a
    CUDA one.
    """
    if str(device).startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


def birth_certificate(device="cpu") -> dict:
    """Who made a number: profile, notebook, device, threads, versions, git commit, time. Imports no
    package.
    """
    device = str(device)
    return {
        "profile": profile(),
        "notebook": os.environ.get("PREHAB_NOTEBOOK"),
        "device": device,
        "device_name": _device_name(device),
        "threads": _threads(),
        "versions": _versions(),
        "commit": _commit(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _plain(name: str, value):
    """A Python scalar: NumPy scalars and one-element tensors are unwrapped, NaN and infinities
    refused.
    """
    if not isinstance(value, (str, bool, int, float, type(None))) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"record: {name} is {value}, and a score that is no number is not recorded: find its cause"
        )
    if not isinstance(value, (str, bool, int, float, type(None))):
        raise ValueError(
            f"record: {name} must be text, a number, a boolean or None, not {type(value).__name__}"
        )
    return value


def _kind(value) -> str:
    return (
        "boolean"
        if isinstance(value, bool)
        else "number"
        if isinstance(value, (int, float))
        else "text"
    )


FIELDS = {
    "method": "text",
    "removed": "number",
    "achieved": "number",
    "metric": "text",
    "value": "number",
    "higher_is_better": "boolean",
    "seed": "number",
    "control": "boolean",
    "seconds": "number",
}


class Results:
    """The scores of one notebook run.

    protocol: one sentence on how the scores were taken (data split, batch, tokens). about: further
    facts that hold for all of them; `model` and `data` are printed beside the paper's in reports.
    """

    def __init__(self, protocol: str, device="cpu", **about):
        if not isinstance(protocol, str) or not protocol.strip():
            raise ValueError("Results: protocol must be a sentence saying how the scores are taken")
        self.protocol = protocol
        self.device = str(device)
        self.about = birth_certificate(device) | {
            name: _plain(name, value) for name, value in about.items()
        }
        self.records: list[dict] = []
        self._kinds = dict(FIELDS)

    def add(
        self,
        *,
        method,
        removed,
        achieved,
        metric,
        value,
        higher_is_better: bool,
        seed,
        control: bool,
        seconds,
        **extra,
    ) -> None:
        """Record one score.

        removed, achieved: fraction of the compressed layers' parameters taken away, as asked and as
        recounted from the modules (0 for the uncompressed model). control: True for rows made with
        λ = 0 and the same steps, data, optimiser and trained parameters. seconds: wall time behind
        this row. extra: further columns, for example lora=True, lam=0.1, surrogate="nuclear",
        paper_table="II". Raises ValueError naming the field that is wrong.
        """
        given = dict(
            method=method,
            removed=removed,
            achieved=achieved,
            metric=metric,
            value=value,
            higher_is_better=higher_is_better,
            seed=seed,
            control=control,
            seconds=seconds,
            **extra,
        )
        record = {name: _plain(name, field) for name, field in given.items()}
        for name, field in record.items():
            if field is None and name not in FIELDS:
                continue
            expected = self._kinds.setdefault(name, _kind(field))
            if field is None or _kind(field) != expected:
                raise ValueError(f"record: {name} must be a {expected} in every row, not {field!r}")
        if not 0 <= record["removed"] < 1:
            raise ValueError(f"record: removed must be a fraction in [0, 1), not {removed}")
        if not isinstance(record["seed"], int):
            raise ValueError(f"record: seed must be an integer, not {seed}")
        if record["seconds"] < 0:
            raise ValueError(f"record: seconds must not be negative, not {seconds}")
        self.records.append(record)

    def frame(self):
        """pandas.DataFrame with one row a score, in the order they were added."""
        import pandas

        return pandas.DataFrame(self.records, columns=None if self.records else list(FIELDS))

    def save(self) -> Path | None:
        """Write result.json and records.parquet into the run folder; do nothing where there is
        none.
        """
        folder = run_dir()
        if folder is None:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        self.frame().to_parquet(folder / "records.parquet", index=False)
        about = self.about | {"peak_memory_mb": peak_memory_mb(self.device)}
        write_json(
            folder / "result.json",
            {"about": about, "protocol": self.protocol, "records": self.records},
        )
        return folder / "result.json"
