import pytest

from prehab_lib.save.hub import explained


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


def test_a_cause_is_looked_through():
    with pytest.raises(PermissionError), explained("X", "do Y"):
        raise RuntimeError("failed") from GatedRepoError("403")


@pytest.mark.parametrize("text", ["size mismatch in /data/aggregated/vit", "bad header in /mnt/offline_models/vit"])
def test_a_source_that_cannot_be_read_is_neither_gated_nor_offline(text):
    with pytest.raises(ValueError, match=f"X could not be read .{text}.: do Y"), explained("X", "do Y"):
        raise RuntimeError(text)


def test_out_of_memory_and_a_full_disk_stay_what_they_are():
    with pytest.raises(MemoryError), explained("X", "do Y"):
        raise MemoryError
    with pytest.raises(OSError, match="No space"), explained("X", "do Y"):
        raise OSError(28, "No space left on device")
