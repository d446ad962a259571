"""What a profile asks for: which notebooks, with which parameters, and what each needs to have run before.

A run is one notebook with one set of parameters. `smoke` is the notebooks' own defaults; every other profile replaces
some of them by params/NN_name.PROFILE.yaml. Everything is checked here, before a run starts or a file is written.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from prehab_lib import parameters

PROFILES = ("smoke", "laptop", "lab", "paper")


@dataclass(frozen=True)
class Run:
    """One notebook with every parameter resolved. needs: names of notebooks whose results it reads."""

    name: str
    notebook: Path
    profile: str
    params: dict
    needs: tuple[str, ...] = ()
    note: str = ""


def home() -> Path:
    """The folder that holds notebooks/: the current one, one above it, or this package's checkout.

    Raises FileNotFoundError where none does.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder
    raise FileNotFoundError(f"no notebooks/NN_name.ipynb in {here} or above it: run this in the repository's folder")


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


def needs(notebook: Path) -> tuple[str, ...]:
    """Notebooks whose results this one reads: `"prehab": {"needs": ["03_vit"]}` in the notebook's metadata."""
    metadata = json.loads(notebook.read_text(encoding="utf-8")).get("metadata", {})
    return tuple(metadata.get("prehab", {}).get("needs", ()))


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


def _profile_values(root: Path, profile: str, name: str) -> tuple[dict, str]:
    if profile == "smoke":
        return {}, ""
    file = root / "params" / f"{name}.{profile}.yaml"
    if file.is_file():
        return parameters.load_file(file), ""
    return {}, f"there is no params/{file.name}: {name} runs with its own defaults"


def is_path(value) -> bool:
    """Text that starts like a path is one; a name such as "timm/vit" is not, even if a folder is called so."""
    return isinstance(value, str) and value.startswith(("./", "../", "~", "/"))


def _absolute(params: dict) -> dict:
    """Paths as seen from where the command was typed: the notebook runs elsewhere."""

    def whole(name, value):
        if is_path(value) or (name == "data_root" and value):
            return os.path.abspath(os.path.expanduser(value))
        return value

    return {name: whole(name, value) for name, value in params.items()}


def runs(root: Path, profile: str, wanted: list[str], overrides: dict) -> list[Run]:
    """The runs of a profile, each after what it needs.

    wanted: notebooks by number or name, all where empty; what they need is added. overrides: parameters from the
    command line, which every wanted notebook must have. Raises ValueError for an unknown profile, notebook or
    parameter or a refused value, FileNotFoundError for a data_root that is no folder.
    """
    known = notebooks(root)
    check_profile(root, profile)
    chosen, planned = select(known, wanted), []
    for name in _with_needs(known, chosen):
        values, note = _profile_values(root, profile, name)
        params = parameters.resolve(known[name], values)
        if name in chosen and overrides:
            params = parameters.resolve(known[name], values | overrides)
        params = _absolute(params)
        if params.get("data_root") and not os.path.isdir(params["data_root"]):
            raise FileNotFoundError(
                f"{name}: data_root = {params['data_root']} is not a folder: name the one holding the data"
            )
        planned.append(Run(name, known[name], profile, params, needs(known[name]), note))
    return planned
