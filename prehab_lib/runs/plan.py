"""What a profile asks for: which notebooks, with which parameters.

A run is one notebook with one set of parameters. `smoke` is the notebooks' own defaults; every
other profile replaces some of them by params/NN_name.PROFILE.yaml, whose `grid` makes several runs
of one notebook (`grid.py`). Everything is checked here, before a run starts or a file is written.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from prehab_lib.runs import grid
from prehab_lib.tasks import parameters

PROFILES = ("smoke", "laptop", "lab", "paper")
CGROUP = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Run:
    """One notebook with every parameter resolved."""

    name: str  # the notebook's; in a grid with what sets this run apart, `04_bert_glue.cola`
    notebook: Path
    profile: str
    params: dict
    last: bool = False  # it reads all results that there are, so it comes after the other runs
    threads: int = 1  # that each of its libraries may use
    gpu: bool = False  # it uses one, so it is never beside another run on the same


def home() -> Path:
    """The folder that holds notebooks/: the current one, one above, or this package's checkout."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if notebooks(folder):
            return folder
    raise FileNotFoundError(
        f"no notebooks/NN_name.ipynb in {here} or above it, and an installed prehab_lib has none: "
        "run this in a checkout of the repository"
    )


def notebooks(root: Path) -> dict[str, Path]:
    """Name -> file, in the order of the book."""
    return {file.stem: file for file in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def check_profile(root: Path, profile: str) -> None:
    """Raises ValueError for a profile that is neither one of PROFILES nor has a file in params/."""
    if profile not in PROFILES and not any((root / "params").glob(f"*.{profile}.yaml")):
        choices = f"choose {', '.join(PROFILES)}, or write params/NN_name.{profile}.yaml"
        raise ValueError(f'unknown profile "{profile}": {choices}')


def _select(known: dict[str, Path], wanted: Collection[str]) -> list[str]:
    """Full names for what a reader typed: "03" or "03_vit"; all where nothing was typed."""
    missing = set(wanted) - set(known) - {name[:2] for name in known}
    if missing:
        raise ValueError(f'no notebook "{min(missing)}": there are {", ".join(known)}')
    return [name for name in known if not wanted or name in wanted or name[:2] in wanted]


def _expanded(
    root: Path, profile: str, notebook: Path, overrides: dict, axes: dict | None = None
) -> list[Run]:
    """The runs of one notebook, with the paths among their parameters made absolute."""
    file = root / "params" / f"{notebook.stem}.{profile}.yaml"
    values = parameters.load_file(file) if profile != "smoke" and file.is_file() else {}
    metadata = json.loads(notebook.read_text(encoding="utf-8")).get("metadata", {})
    last = metadata.get("prehab", {}).get("last", False)
    runs = []
    for suffix, params in grid.expand(notebook, values, overrides, f"params/{file.name}", axes):
        for name, value in params.items():  # the notebook works in another folder
            if is_path(value) or (name == "data_root" and value):
                params[name] = os.path.abspath(os.path.expanduser(value))
        name = f"{notebook.stem}.{suffix}" if suffix else notebook.stem
        runs.append(Run(name, notebook, profile, params, last))
    return runs


def expected(root: Path, profile: str, wanted: Collection[str]) -> dict[str, dict[str, dict]]:
    """Notebook -> name of each of its runs -> parameters, of the `wanted` that are there."""
    found = {}
    for name, file in notebooks(root).items():
        if name in wanted:
            found[name] = {run.name: run.params for run in _expanded(root, profile, file, {})}
    return found


def is_path(value) -> bool:
    """Text that starts like a path is one; a name such as "timm/vit" is not."""
    return isinstance(value, str) and value.startswith(("./", "../", "~", "/"))


def wants_gpu(params: dict) -> bool:
    """A run asks for a GPU by its parameter `device`: "cuda", or "auto" where there is one."""
    return str(params.get("device", "cpu")).startswith(("cuda", "auto"))


def cores() -> int:
    """Cores this process may use; in a container, those of its quota (cgroup 2)."""
    usable = getattr(os, "sched_getaffinity", None)
    count = len(usable(0)) if usable else os.cpu_count() or 1
    try:
        quota, period = CGROUP.read_text().split()
        return max(1, min(count, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return count


def gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, of those this process may see. Importing torch takes long."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(number) for number in range(listed.count("GPU "))]


def runs(
    root: Path,
    profile: str,
    wanted: Collection[str] = (),
    overrides: dict | None = None,
    axes: dict | None = None,
    threads: int | None = None,
) -> list[Run]:
    """The runs of a profile, in the order of the book.

    wanted: notebooks by number or name, all where empty. overrides, axes: parameters and a grid
    from the command line, which every wanted notebook must have. threads: of every run; by default
    half of the cores, or those that each GPU has, so that numbers do not depend on what runs
    beside. Raises ValueError, or FileNotFoundError for a data_root that is no folder.
    """
    check_profile(root, profile)
    known, planned = notebooks(root), []
    for name in _select(known, wanted):
        planned += _expanded(root, profile, known[name], overrides or {}, axes)
    for run in planned:
        folder = run.params.get("data_root")
        if folder and not os.path.isdir(folder):
            what = "is not a folder: name the one holding the data"
            raise FileNotFoundError(f"{run.name}: data_root = {folder} {what}")
    devices = len(gpus()) if any(wants_gpu(run.params) for run in planned) else 0
    threads = threads or max(1, cores() // max(2, devices))
    asks = [devices > 0 and wants_gpu(run.params) for run in planned]
    return [replace(run, threads=threads, gpu=gpu) for run, gpu in zip(planned, asks, strict=True)]
