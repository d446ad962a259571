"""The birth certificate of a number: who made it, with what, when; and files written whole.

Nothing here imports a package, so a score costs no start-up time.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VERSIONED = ("torch", "timm", "transformers", "peft", "numpy")
REPOSITORY = Path(__file__).resolve().parents[2]
# Only these decide numbers: a changed figure or report does not make the code "dirty".
CODE = ("prehab_lib", "notebooks", "params", "pyproject.toml")
CODE += ("requirements.lock", "requirements-pretrained.lock")


def run_dir() -> Path | None:
    """The folder the runner asks this notebook to write to; None where no runner asks."""
    folder = os.environ.get("PREHAB_RUN_DIR")
    return Path(folder) if folder else None


def profile() -> str:
    """Name of the profile; "smoke" without a runner, as a notebook's defaults are that profile."""
    return os.environ.get("PREHAB_PROFILE") or "smoke"


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file to write, which then takes the target's place in one step: never half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield draft
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a file in one step, unless it holds just that: so a disk may be read-only."""
    content = content.encode() if isinstance(content, str) else content
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    with replacing(path) as draft:
        draft.write_bytes(content)


def write_json(path: Path, content) -> None:
    """Write a JSON file in one step. Raises ValueError for NaN and infinities."""
    write(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _git(*arguments: str) -> str:
    """What git prints about this repository. Raises OSError or SubprocessError where it fails."""
    # Another owner's checkout is read, too; a hook's variables would name another repository.
    settings = ["-c", f"safe.directory={REPOSITORY}", "-c", "core.fsmonitor=false"]
    own = {name: os.environ[name] for name in os.environ if not name.startswith("GIT_")}
    options = {"capture_output": True, "text": True, "timeout": 20, "env": own, "check": True}
    command = ["git", "-C", str(REPOSITORY), *settings, *arguments]
    return subprocess.run(command, **options).stdout.strip()


def _commit() -> str | None:
    """Git's commit of the checkout, "+dirty" where its code differs; None outside a checkout.

    "unknown" in a checkout that git cannot read.
    """
    if not (REPOSITORY / ".git").exists():
        return None  # installed, perhaps inside somebody else's repository
    code = [name for name in CODE if (REPOSITORY / name).exists()]
    try:
        head = _git("rev-parse", "--revs-only", "HEAD") or "no commit yet"
        changed = _git("status", "--porcelain", "--untracked-files=normal", "--", *code)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"unknown: {' '.join(said.split())[:200]}"
    return f"{head}+dirty" if changed else head


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    with suppress(OSError, IndexError):  # only Linux has the file
        return re.findall(r"model name\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text())[0]
    return platform.processor() or platform.machine()


def peak_memory_mb(device="cpu", children: bool = False) -> int:
    """Largest memory (MB = 2**20 bytes) that this process has held so far, on a CUDA device there.

    children: of the largest process it has started and waited for, instead of its own.
    """
    if str(device).startswith("cuda"):
        import torch

        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    if sys.platform == "win32":  # it does not count
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, kilobytes elsewhere
    whose = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    return round(resource.getrusage(whose).ru_maxrss * unit / 2**20)


def birth_certificate(device="cpu") -> dict:
    """Profile, notebook, device, threads, versions, git commit and time, as JSON can hold them."""
    torch = sys.modules.get("torch")  # where it is not loaded, nothing here needs it
    asked = re.match(r"\s*[1-9]\d*", os.environ.get("OMP_NUM_THREADS", ""))  # "4,2": of each level
    threads = int(asked[0]) if asked else os.cpu_count() or 1
    versions = {"python": platform.python_version()}
    for package in VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    born = {"profile": profile(), "notebook": os.environ.get("PREHAB_NOTEBOOK")}
    born |= {"device": str(device), "device_name": _device_name(str(device))}
    born["threads"] = torch.get_num_threads() if torch else threads
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return born | {"versions": versions, "commit": _commit(), "started": started}
