import pytest

from prehab_lib.inputs import check_positive, check_whole


@pytest.mark.parametrize("value", [0, -1, 1.0, "3", True, None])
def test_whole_numbers(value):
    with pytest.raises(ValueError, match="steps = .*: give a whole number, 1 or larger"):
        check_whole(1, steps=value)
    check_whole(1, steps=1)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "1e-3", True, None])
def test_positive_numbers(value):
    with pytest.raises(ValueError, match="lr = .*: give a positive number"):
        check_positive(lr=value)
    check_positive(lr=1e-30)
