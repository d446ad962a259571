"""What goes wrong between here and a model hub, in one sentence each."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

_OFFLINE = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionError",
)
_GATED = ("GatedRepoError",)
_ABSENT = (
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "EntryNotFoundError",
    "DatasetNotFoundError",
)


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn a library's error while it fetches or reads `what` into one sentence: why it could not
    be had, and the remedy.

    Raises PermissionError (gated), ConnectionError (no network), FileNotFoundError (no such
    repository), and ValueError for a source that is there and cannot be read.  Running out of
    memory or disk passes as it is.
    """
    try:
        yield
    except Exception as problem:
        names, text = _names(problem), " ".join(str(problem).split())
        if names & set(_GATED) or re.search(r"\bgated (repo|dataset)", text, re.IGNORECASE):
            raise PermissionError(
                f"{what} is gated: accept its terms on the hub and run `hf auth login`, or {remedy}"
            ) from problem
        if names & set(_OFFLINE) or re.search(
            r"offline mode|couldn't connect|cannot reach", text, re.IGNORECASE
        ):
            raise ConnectionError(
                f"{what} could not be fetched, there is no connection to the hub: {remedy}"
            ) from problem
        if names & set(_ABSENT):
            raise FileNotFoundError(
                f"{what} was not found on the hub: check the name, or {remedy}"
            ) from problem
        if (
            names & {"OutOfMemoryError", "MemoryError"}
            or getattr(problem, "errno", None) == errno.ENOSPC
        ):
            raise
        raise ValueError(f"{what} could not be read ({text[:200]}): {remedy}") from problem


def _names(problem: BaseException | None) -> set[str]:
    """Class names of an error and of everything that caused it, with their bases."""
    names: set[str] = set()
    while problem is not None:
        names |= {cls.__name__ for cls in type(problem).__mro__} - {
            "Exception",
            "BaseException",
            "object",
            "OSError",
        }
        problem = problem.__cause__ or problem.__context__
    return names
