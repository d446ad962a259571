"""What a profile asks for: which notebooks, with which parameters.

A run is one notebook with one set of parameters. `smoke` is the notebooks' own defaults; every
other profile replaces some of them by params/NN_name.PROFILE.yaml, whose `grid` makes several runs
of one notebook (`grid.py`). Everything is checked here, before a run starts or a file is written.
"""

import difflib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from prehab_lib.runs import grid
from prehab_lib.runs.inputs import is_path, packaged, paths
from prehab_lib.tasks import parameters

PROFILES = ("smoke", "laptop", "pretrained", "lab", "paper")
PART = ("pretrained", "paper")  # of these, notebooks without a params file do not run
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
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
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise FileNotFoundError("the current folder was removed: change to another") from None
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if notebooks(folder):
            return folder
    what = f"no notebooks/NN_name.ipynb in {here} or above it, and an installed prehab_lib has none"
    raise FileNotFoundError(f"{what}: run this in a checkout of the repository")


def notebooks(root: Path) -> dict[str, Path]:
    """Name -> file, in the order of the book, without Jupyter's duplicates (-Copy1)."""
    files = sorted((root / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
    return {file.stem: file for file in files if not re.search(r"-Copy\d+$", file.stem)}


def _check_files(root: Path, profile: str, known: Collection[str]) -> None:
    """Raises ValueError for a params file of the profile that no notebook would read."""
    for file in sorted((root / "params").glob(f"*.{profile}.y*ml")):
        name = file.name.removesuffix(f".{profile}{file.suffix}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1) or known
            raise ValueError(f"params/{file.name}: no notebook {name}: is it {', '.join(close)}?")
        if file.suffix != ".yaml":
            raise ValueError(f"params/{file.name} is not read: call it {file.stem}.yaml")


def check_profile(root: Path, profile: str, stored: bool = False) -> None:
    """Raises ValueError for a name that is no plain one, or of no profile that there is.

    There are PROFILES and those with a file in params/; stored: also those with results.
    """
    if not PLAIN.fullmatch(profile):
        must = "a profile's name has letters, digits, - and _ alone"
        raise ValueError(f"{profile[:80]!r} is no profile: {must}")
    named = [file.name.split(".")[1] for file in sorted((root / "params").glob("*.*.yaml"))]
    if stored:
        named += [place.name for place in [*root.glob("runs/*/"), *root.glob("figures/*/")]]
    known = dict.fromkeys([*PROFILES, *filter(PLAIN.fullmatch, named)])
    if profile not in known:
        remedy = f"there are {', '.join(known)}; params/NN_name.{profile}.yaml makes another"
        raise ValueError(f'unknown profile "{profile}": {remedy}')


def _expanded(root: Path, profile: str, notebook: Path, overrides=None, axes=None) -> list[Run]:
    """The runs of one notebook, with the paths among their parameters made absolute."""
    file = root / "params" / f"{notebook.stem}.{profile}.yaml"
    values = {}
    if profile != "smoke" and os.path.lexists(file):  # also a link to nowhere, which is said
        values = parameters.load_file(file)
    points = grid.expand(notebook, values, overrides or {}, f"params/{file.name}", axes)
    last, runs = _is_last(notebook), []
    for suffix, params in points:
        params = {name: _absolute(value) for name, value in params.items()}
        if params.get("data_root"):
            params["data_root"] = os.path.abspath(os.path.expanduser(params["data_root"]))
        name = ".".join(filter(None, [notebook.stem, suffix]))
        runs.append(Run(name, notebook, profile, params, last, gpu=wants_gpu(params)))
    return runs


def _is_last(notebook: Path) -> bool:
    metadata = parameters.content(notebook).get("metadata", {})
    return metadata.get("prehab", {}).get("last", False)


def expected(root: Path, profile: str, wanted: Collection[str]) -> dict[str, dict[str, dict]]:
    """Notebook -> name of each of its runs -> parameters, of the `wanted` that are there."""
    files = {name: file for name, file in notebooks(root).items() if name in wanted}
    runs = {name: _expanded(root, profile, file) for name, file in files.items()}
    return {name: {run.name: run.params for run in runs[name]} for name in runs}


def _absolute(value):
    """The paths in a value made absolute, for the notebook works in another folder."""
    if isinstance(value, dict):
        return {name: _absolute(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [_absolute(inside) for inside in value]
    is_one = isinstance(value, str) and is_path(value)
    return os.path.abspath(os.path.expanduser(value)) if is_one else value


def wants_gpu(params: dict) -> bool:
    """A run asks for a GPU by its parameter `device`: "cuda", or "auto" where there is one."""
    return str(params.get("device", "cpu")).startswith(("cuda", "auto"))


def cores() -> int:
    """Cores this process may use; in a container, those of its quota (cgroup 2)."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = CGROUP.read_text().split()
        count = max(1, min(count, int(quota) // int(period)))
    return count


def gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES, of those this process may see. Importing torch takes long."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None and shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        return [str(number) for number in range(listed.count("GPU "))]
    return [name for name in (visible or "").split(",") if name.strip() not in ("", "-1")]


def runs(
    root: Path,
    profile: str,
    wanted: Collection[str] = (),
    overrides: dict | None = None,
    axes: dict | None = None,
    threads: int | None = None,
) -> list[Run]:
    """The runs of a profile, in the order of the book.

    wanted: notebooks by number or name; where empty all, of the profiles in PART those with a file
    in params/ and those that read results. overrides, axes: parameters and a grid from the command
    line, which every wanted notebook must have. threads: of every run; by default half of the
    cores, or those that each GPU has, so that numbers do not depend on what runs beside. Raises
    ValueError, or FileNotFoundError for a path that cannot be followed.
    """
    check_profile(root, profile)
    known, planned = notebooks(root), []
    missing = set(wanted) - set(known) - {name.split("_")[0] for name in known}
    if missing:
        raise ValueError(f"no notebook {json.dumps(min(missing))}: there are {', '.join(known)}")
    _check_files(root, profile, known)
    for name, file in known.items():
        chosen = name in wanted or name.split("_")[0] in wanted
        has_file = os.path.lexists(root / "params" / f"{name}.{profile}.yaml")
        takes_part = profile not in PART or has_file or _is_last(file)
        if chosen or (not wanted and takes_part):
            planned += _expanded(root, profile, file, overrides, axes)
    for run in planned:
        packaged(run.params)
        for name, path in paths(run.params):
            lost = not os.path.exists(os.path.expanduser(path)) and "not there"
            if name == "data_root" and not os.path.isdir(path):
                lost = "not a folder"
            if lost:  # also in a loop of links, or too long a name
                raise FileNotFoundError(f"{run.name}: {name} = {path[:200]} is {lost}: check it")
    devices = len(gpus()) if any(run.gpu for run in planned) else 0
    threads = threads or max(1, cores() // max(2, devices))
    return [replace(run, threads=threads, gpu=run.gpu and devices > 0) for run in planned]
