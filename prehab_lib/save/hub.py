"""What goes wrong between here and a model hub, in one sentence each."""

import errno
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from huggingface_hub import constants

_OFFLINE = {"OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ConnectionError"}
_OFFLINE |= {"LocalEntryNotFoundError"}  # which is an EntryNotFoundError too: asked for first
_ABSENT = {f"{what}NotFoundError" for what in ("Repository", "Revision", "Entry", "Dataset")}
_NO_ROOM = {"OutOfMemoryError", "MemoryError"}


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn a library's error while it fetches or reads `what` into one sentence with the remedy.

    Raises PermissionError (gated), ConnectionError (no network), FileNotFoundError (no such
    repository), else ValueError. Running out of memory or disk passes as it is.
    """
    try:
        yield
    except Exception as problem:
        names, text = _names(problem), one_line(problem, 10_000)
        gated = re.search(r"\bgated (repo|dataset)", text, re.IGNORECASE)
        unreached = re.search(r"offline mode|couldn't connect|cannot reach", text, re.IGNORECASE)
        if gated or "GatedRepoError" in names:
            kind = PermissionError
            why = "is gated: accept its terms on the hub and run `hf auth login`, or"
        elif unreached or names & _OFFLINE:
            kind, why = ConnectionError, "could not be fetched, there is no connection to the hub:"
        elif names & _ABSENT:
            kind, why = FileNotFoundError, "was not found on the hub: check the name, or"
        elif names & _NO_ROOM or getattr(problem, "errno", None) == errno.ENOSPC:
            raise
        else:
            kind, why = ValueError, f"could not be read ({one_line(problem)}):"
        raise kind(f"{what} {why} {remedy}") from problem


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Inside, the hub counts as out of reach."""
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def one_line(problem: object, most: int = 200) -> str:
    """What an error of a library says, or a path, without line breaks and not too long."""
    return (" ".join(str(problem).split()) or type(problem).__name__)[:most]


def _names(problem: BaseException | None) -> set[str]:
    """Class names of an error and of everything that caused it, with their bases."""
    names: set[str] = set()
    while problem is not None:
        names |= {kind.__name__ for kind in type(problem).__mro__}
        problem = problem.__cause__ or problem.__context__
    return names


def optional(name: str) -> ModuleType:
    """A package that not every task needs.  Raises ValueError with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        raise ValueError(not_installed(problem)) from problem


def not_installed(problem: ModuleNotFoundError) -> str:
    package = (problem.name or str(problem)).split(".")[0]
    line = f"pip install {package}".replace("sklearn", "scikit-learn")
    return f"the package {package!r} is not installed: run `{line}`"
