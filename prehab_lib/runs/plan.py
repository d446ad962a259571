"""What a profile asks for: which notebooks, with which parameters, and what each needs to have run
before.

A run is one notebook with one set of parameters. `smoke` is the notebooks' own defaults; every
other profile replaces some of them by params/NN_name.PROFILE.yaml, whose `grid` makes several runs
of one notebook (`grid.py`). Everything is checked here, before a run starts or a file is written.

A plan also fixes what a run gets, so that its numbers do not depend on what runs beside it or on
who starts it: a number of threads, half of the cores or, with several GPUs, the cores each of them
has; and at most one GPU.
"""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from prehab_lib.runs import grid, machine
from prehab_lib.tasks import parameters

PROFILES = ("smoke", "laptop", "lab", "paper")


@dataclass(frozen=True)
class Price:
    """What a run takes, as far as anybody knows; None where nobody does.

    memory_mb: most that its kernel holds, in 2**20 bytes. gpu_memory_gb: the same on the GPU, in
    2**30. source: where the numbers are from ("measured", "measured with other steps", "table",
    "estimated"), or "unknown".
    """

    minutes: float | None = None
    memory_mb: int | None = None
    gpu_memory_gb: float | None = None
    source: str = "unknown"


@dataclass(frozen=True)
class Run:
    """One notebook with every parameter resolved.

    name: the notebook's, in a grid with what sets this run apart (`04_bert_glue.cola`). needs:
    names of the runs whose results it reads. last: it reads whatever results the profile has, so it
    waits for every other run, also for one that fails. threads: that each of its libraries may use.
    gpu: GPUs it takes, 0 or 1. price: filled in by `priced.py`.
    """

    name: str
    notebook: Path
    profile: str
    params: dict
    needs: tuple[str, ...] = ()
    note: str = ""
    last: bool = False
    threads: int = 1
    gpu: int = 0
    price: Price = Price()

    @property
    def suffix(self) -> str:
        """What sets this run of a grid apart, "" where there is no grid."""
        return self.name.removeprefix(self.notebook.stem).removeprefix(".")


def home() -> Path:
    """The folder that holds notebooks/: the current one, one above it, or this package's checkout.

    Raises FileNotFoundError where none does.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise FileNotFoundError(
        f"no notebooks/NN_name.ipynb in {here} or above it: run this in the repository's folder"
    )


def notebooks(root: Path) -> dict[str, Path]:
    """Name -> file, in the order of the book."""
    return {file.stem: file for file in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def check_profile(root: Path, profile: str) -> None:
    """Raises ValueError for a profile that is neither one of the four nor has a file in params/."""
    if profile not in PROFILES and not any((root / "params").glob(f"*.{profile}.yaml")):
        choices = f"choose {', '.join(PROFILES)}, or write params/NN_name.{profile}.yaml"
        raise ValueError(f'unknown profile "{profile}": {choices}')


def select(known: dict[str, Path], wanted: list[str]) -> list[str]:
    """Full names for what a reader typed: "03" or "03_vit"; all where nothing was typed.

    Raises ValueError naming what is not there.
    """
    chosen = []
    for word in wanted:
        found = [name for name in known if word in (name, name.partition("_")[0])]
        if not found:
            raise ValueError(f'no notebook "{word}": there are {", ".join(known)}')
        chosen += found
    return [name for name in known if name in chosen] if wanted else list(known)


def _declared(notebook: Path) -> dict:
    """What a notebook says of itself: `"prehab": {...}` in its metadata."""
    return json.loads(notebook.read_text(encoding="utf-8")).get("metadata", {}).get("prehab", {})


def needs(notebook: Path) -> tuple[str, ...]:
    """Notebooks whose results this one reads: `"prehab": {"needs": ["03_vit"]}` in the notebook's
    metadata.
    """
    return tuple(_declared(notebook).get("needs", ()))


def _with_needs(known: dict[str, Path], chosen: list[str]) -> list[str]:
    ordered: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"{' needs '.join((*path, name))}: a notebook cannot need itself")
        if name not in known:
            raise ValueError(f"{path[-1]} needs {name}, which is no notebook here")
        for upstream in needs(known[name]):
            visit(upstream, (*path, name))
        if name not in ordered:
            ordered.append(name)

    for name in chosen:
        visit(name, ())
    return ordered


def _expanded(
    root: Path, profile: str, notebook: Path, overrides: dict, axes: dict | None = None
) -> list[Run]:
    """The runs of one notebook, before anybody knows what they need. axes: a grid from the command
    line.
    """
    file = root / "params" / f"{notebook.stem}.{profile}.yaml"
    values, note = {}, ""
    if profile != "smoke" and file.is_file():
        values = parameters.load_file(file)
    elif profile != "smoke":
        note = f"there is no params/{file.name}: {notebook.stem} runs with its own defaults"
    last = _declared(notebook).get("last", False)
    return [
        Run(
            f"{notebook.stem}.{suffix}" if suffix else notebook.stem,
            notebook,
            profile,
            params,
            note=note,
            last=last,
        )
        for suffix, params in grid.expand(notebook, values, overrides, f"params/{file.name}", axes)
    ]


def expected(root: Path, profile: str, wanted: Collection[str]) -> dict[str, dict[str, dict]]:
    """Notebook -> name of each of its runs -> parameters, as notebooks and params files stand; no
    data is looked for.

    wanted: names of notebooks; those that are not there are left out.
    """
    return {
        name: {run.name: _absolute(run.params) for run in _expanded(root, profile, file, {})}
        for name, file in notebooks(root).items()
        if name in wanted
    }


def is_path(value) -> bool:
    """Text that starts like a path is one; a name such as "timm/vit" is not, even if a folder is
    called so.
    """
    return isinstance(value, str) and value.startswith(("./", "../", "~", "/"))


def _absolute(params: dict) -> dict:
    """Paths as seen from where the command was typed: the notebook runs elsewhere."""

    def whole(name, value):
        if is_path(value) or (name == "data_root" and value):
            return os.path.abspath(os.path.expanduser(value))
        return value

    return {name: whole(name, value) for name, value in params.items()}


def wants_gpu(params: dict) -> bool:
    """A run asks for a GPU by its parameter `device`: "cuda", or "auto"."""
    return str(params.get("device", "cpu")).startswith(("cuda", "auto"))


def _equipped(planned: list[Run], threads: int | None) -> list[Run]:
    """The runs with their threads and GPUs. "auto" takes a GPU where this machine has one, "cuda"
    needs one.
    """
    there = len(machine.gpus()) if any(wants_gpu(run.params) for run in planned) else 0
    threads = threads or max(1, machine.cores() // max(2, there))
    return [
        replace(
            run,
            threads=threads,
            gpu=int(wants_gpu(run.params) and (there > 0 or run.params["device"] != "auto")),
        )
        for run in planned
    ]


def runs(
    root: Path,
    profile: str,
    wanted: list[str],
    overrides: dict,
    axes: dict | None = None,
    threads: int | None = None,
) -> list[Run]:
    """The runs of a profile, each after what it needs.

    wanted: notebooks by number or name, all where empty; what they need is added. overrides:
    parameters from the command line, which every wanted notebook must have; one that is in a grid
    stands for its values there. axes: a grid from the command line, parameter -> values, laid over
    that of the params files. threads: of every run, instead of this machine's rule. Raises
    ValueError for an unknown profile, notebook or parameter or a refused value or grid,
    FileNotFoundError for a data_root that is no folder.
    """
    known = notebooks(root)
    check_profile(root, profile)
    chosen = select(known, wanted)
    planned: dict[str, list[Run]] = {}
    for name in _with_needs(known, chosen):
        upstream = tuple(run.name for needed in needs(known[name]) for run in planned[needed])
        typed = (overrides, axes) if name in chosen else ({}, None)
        expanded = _expanded(root, profile, known[name], *typed)
        planned[name] = [
            replace(run, params=_absolute(run.params), needs=upstream) for run in expanded
        ]
    flat = [run for runs in planned.values() for run in runs]
    for run in flat:
        if run.params.get("data_root") and not os.path.isdir(run.params["data_root"]):
            raise FileNotFoundError(
                f"{run.name}: data_root = {run.params['data_root']} is not a folder: name the one holding the data"
            )
    return _equipped(flat, threads)


def as_data(planned: list[Run]) -> dict:
    """The plan as what JSON can hold: `plan_file.as_data`."""
    from prehab_lib.runs import plan_file

    return plan_file.as_data(planned)


def from_data(data: dict, root: Path) -> list[Run]:
    """The plan that `as_data` made, read and checked again: `plan_file.from_data`."""
    from prehab_lib.runs import plan_file

    return plan_file.from_data(data, root)
