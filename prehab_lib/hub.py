"""What goes wrong between here and a model hub, in one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager

_OFFLINE = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectTimeout", "ConnectionError")
_GATED = ("GatedRepoError",)
_ABSENT = ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError", "DatasetNotFoundError")


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn a hub library's error into one sentence: what could not be had, why, and the remedy.

    Raises PermissionError (gated), FileNotFoundError (no such repository), ConnectionError (no network).  Other errors pass.
    """
    try:
        yield
    except Exception as problem:
        names = _names(problem)
        if names & set(_GATED) or "gated" in str(problem).lower():
            raise PermissionError(
                f"{what} is gated: accept its terms on the hub and run `hf auth login`, or {remedy}"
            ) from problem
        if names & set(_OFFLINE) or "offline" in str(problem).lower() or "couldn't connect" in str(problem).lower():
            raise ConnectionError(
                f"{what} could not be fetched, there is no connection to the hub: {remedy}"
            ) from problem
        if names & set(_ABSENT):
            raise FileNotFoundError(f"{what} was not found on the hub: check the name, or {remedy}") from problem
        raise


def _names(problem: BaseException | None) -> set[str]:
    """Class names of an error and of everything that caused it, with their bases."""
    names: set[str] = set()
    while problem is not None:
        names |= {cls.__name__ for cls in type(problem).__mro__} - {"Exception", "BaseException", "object", "OSError"}
        problem = problem.__cause__ or problem.__context__
    return names
