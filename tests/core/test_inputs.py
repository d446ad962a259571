import pytest

from prehab_lib.inputs import check_choice, check_positive, check_whole


def test_whole_numbers():
    for value in (0, -1, 1.0, "3", True, None):
        with pytest.raises(ValueError, match=f"steps = {value!r}: give a whole number, 1 or larger"):
            check_whole(1, steps=value)
    check_whole(1, steps=1)


def test_positive_numbers():
    for value in (0, -1, float("nan"), float("inf"), "1e-3", True, None):
        with pytest.raises(ValueError, match=f"lr = {value!r}: give a positive number"):
            check_positive(lr=value)
    check_positive(lr=1e-30)


def test_names_are_among_the_known_ones():
    check_choice("mode", "a", ("a", "b"))
    for value in ("c", None, ["a"]):
        with pytest.raises(ValueError, match="mode = .* is not known: choose one of a, b"):
            check_choice("mode", value, ("a", "b"))
