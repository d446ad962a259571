"""The files of a saved model: all there or none, and only what `storage.save` wrote is replaced."""

import glob
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prehab_lib.save.hub import one_line

DESCRIPTION = "prehab.json"
FORMAT = 2
FIELDS = {"recipe": dict, "rewrites": list, "ranks": dict, "packed": dict, "rounded": list}
FIELDS |= {"files": list}


class Damaged(ValueError):
    """A file is not what its name says."""


class MissingFile(FileNotFoundError, Damaged):
    """A folder or a file of it is not there."""


def check_target(folder: str | Path) -> None:
    """Raises ValueError where `folder` holds any file that is not of a saved model."""
    try:
        folder = Path(folder).resolve()
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return
    except (OSError, RuntimeError) as problem:  # a loop of links, a name too long, no permission
        cannot = f"{one_line(folder)} cannot be a model's folder"
        raise ValueError(f"{cannot}: {one_line(problem)}") from problem
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} holds other files than a saved model: name a new folder")
    ours = {DESCRIPTION}
    with suppress(ValueError, KeyError, TypeError, RecursionError):  # damaged: no more is known
        ours |= {*json.loads((folder / DESCRIPTION).read_text())["files"]}
    foreign = [name for name in files_in(folder) if name not in ours]
    if foreign:
        which = f"{foreign[0]!r}, which is no file of the saved model that would be replaced"
        raise ValueError(f"{folder} holds {which}: move it away, or name a new folder")


def files_in(folder: Path) -> list[str]:
    """Names of all files below a folder, with "/" between, sorted."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder, which replaces `folder` at the block's end; stopped, it changes nothing."""
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    new, old = beside / "new", beside / "old"
    try:
        new.mkdir()  # mkdtemp's own is closed to others
        yield new
        check_target(folder)  # again: writing may have taken minutes
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(beside, ignore_errors=True)  # not reached where that failed


def read_description(folder: Path) -> dict:
    """What DESCRIPTION says.  Raises MissingFile, Damaged where it is no such thing."""
    path = folder / DESCRIPTION
    if not path.is_file():
        place = folder.resolve()
        left = sorted(place.parent.glob(f".{glob.escape(place.name)}.*.part/old/{DESCRIPTION}"))
        what = f"holds no compressed model: {DESCRIPTION} is missing (was it made by surgery.save?)"
        if left and not folder.exists():  # killed between the two moves of `replacing`
            killed = f"a save was killed and left its model in {left[-1].parent}"
            what = f"is not there: {killed}, move it back"
        raise MissingFile(f"{folder} {what}")
    try:
        description = json.loads(path.read_text())
        wrong = [name for name in FIELDS if not isinstance(description.get(name), FIELDS[name])]
    except (ValueError, AttributeError, RecursionError) as problem:
        raise Damaged(f"{path} is damaged: {problem}") from problem
    if wrong or description.get("format") != FORMAT:
        other = f"of another format than this version writes ({FORMAT})"
        raise Damaged(f"{path} is {other}: save the model again")
    return description


def read_weights(folder: Path, listed: list[str]) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors, by their names.  Raises MissingFile, Damaged."""
    tensors = {}
    for path in (folder / Path(name).name for name in listed if name.endswith(".safetensors")):
        if not path.is_file():  # a name's last part alone: nothing outside the folder is read
            raise MissingFile(f"{path} is missing: the folder is incomplete, save it again")
        try:
            tensors |= load_file(path)
        except (SafetensorError, ValueError, OSError) as problem:
            raise Damaged(f"{path} is damaged ({problem}): save or copy it again") from problem
    return tensors
