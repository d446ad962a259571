import pytest

from prehab_lib.hub import explained


class GatedRepoError(Exception):
    pass


class RepositoryNotFoundError(Exception):
    pass


class LocalEntryNotFoundError(Exception):
    pass


@pytest.mark.parametrize(
    ("problem", "becomes", "says"),
    [
        (
            GatedRepoError("401"),
            PermissionError,
            "X is gated: accept its terms on the hub and run `hf auth login`, or do Y",
        ),
        (Exception("Access to this gated repo is restricted"), PermissionError, "X is gated"),
        (
            LocalEntryNotFoundError("404"),
            ConnectionError,
            "X could not be fetched, there is no connection to the hub: do Y",
        ),
        (OSError("We couldn't connect to the hub"), ConnectionError, "no connection"),
        (RepositoryNotFoundError("404"), FileNotFoundError, "X was not found on the hub: check the name, or do Y"),
    ],
)
def test_each_problem_is_one_sentence(problem, becomes, says):
    with pytest.raises(becomes, match=says), explained("X", "do Y"):
        raise problem


def test_a_cause_is_looked_through_and_other_errors_pass():
    with pytest.raises(PermissionError), explained("X", "do Y"):
        raise RuntimeError("failed") from GatedRepoError("403")
    with pytest.raises(ZeroDivisionError), explained("X", "do Y"):
        raise ZeroDivisionError
