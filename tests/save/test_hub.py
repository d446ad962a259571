import pytest

from prehab_lib.save.hub import explained

GatedRepoError, RepositoryNotFoundError, LocalEntryNotFoundError = (
    type(name, (Exception,), {}) for name in ("GatedRepoError", "RepositoryNotFoundError", "LocalEntryNotFoundError")
)
OFFLINE = "X could not be fetched, there is no connection to the hub: do Y"


def test_each_problem_is_one_sentence():
    for problem, becomes, says in (
        (
            GatedRepoError("401"),
            PermissionError,
            "X is gated: accept its terms on the hub and run `hf auth login`, or do Y",
        ),
        (Exception("Access to this gated repo is restricted"), PermissionError, "X is gated"),
        (LocalEntryNotFoundError("404"), ConnectionError, OFFLINE),
        (OSError("We couldn't connect to the hub"), ConnectionError, OFFLINE),
        (RepositoryNotFoundError("404"), FileNotFoundError, "X was not found on the hub: check the name, or do Y"),
        (RuntimeError("size mismatch in /data/aggregated/vit"), ValueError, "X could not be read .size .*vit.: do Y"),
        (RuntimeError("bad header in /mnt/offline_models/vit"), ValueError, "X could not be read .bad .*vit.: do Y"),
        (MemoryError("of the device"), MemoryError, "^of the device$"),
        (OSError(28, "No space left on device"), OSError, r"^\[Errno 28\] No space left on device$"),
    ):
        try:
            with explained("X", "do Y"):
                raise problem
        except Exception as caught:
            raised = caught
        assert type(raised) is becomes, problem
        with pytest.raises(becomes, match=says):
            raise raised


def test_a_cause_is_looked_through():
    with pytest.raises(PermissionError), explained("X", "do Y"):
        raise RuntimeError("failed") from GatedRepoError("403")
