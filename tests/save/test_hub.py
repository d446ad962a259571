import re

from prehab_lib.save.hub import explained
from tests.save.test_storage import refused

NAMES = ("GatedRepoError", "RepositoryNotFoundError", "LocalEntryNotFoundError")
GatedRepoError, RepositoryNotFoundError, LocalEntryNotFoundError = (type(n, (Exception,), {}) for n in NAMES)
GATED = "X is gated: accept its terms on the hub and run `hf auth login`, or do Y"
OFFLINE = "X could not be fetched, there is no connection to the hub: do Y"


def fail(problem):
    with explained("X", "do Y"):
        raise problem


def test_each_problem_is_one_sentence():
    for problem, becomes, says in (
        (GatedRepoError("401"), PermissionError, GATED),
        (Exception("Access to this gated repo is restricted"), PermissionError, "X is gated"),
        (LocalEntryNotFoundError("404"), ConnectionError, OFFLINE),
        (OSError("We couldn't connect to the hub"), ConnectionError, OFFLINE),
        (RepositoryNotFoundError("404"), FileNotFoundError, "X was not found on the hub: check the name, or do Y"),
        (RuntimeError("size mismatch in /data/aggregated/vit"), ValueError, "X could not be read .size .*vit.: do Y"),
        (RuntimeError("bad header in /mnt/offline_models/vit"), ValueError, "X could not be read .bad .*vit.: do Y"),
        (MemoryError("of the device"), MemoryError, "^of the device$"),
        (OSError(28, "No space left on device"), OSError, r"^\[Errno 28\] No space left on device$"),
    ):
        assert re.search(says, refused(becomes, fail, problem)), problem
    problem = RuntimeError("failed")
    problem.__cause__ = GatedRepoError("403")
    assert "X is gated" in refused(PermissionError, fail, problem), "the cause is not looked through"
