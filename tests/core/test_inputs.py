from functools import partial

from prehab_lib.inputs import check_choice, check_positive, check_whole
from tests.stack import refuses


def test_what_is_asked_for_is_said_and_what_is_right_passes():
    for value in (0, -1, 1.0, "3", True, None):
        refuses(partial(check_whole, 1), ({"steps": value}, f"steps = {value!r}: give a whole number, 1 or larger"))
    for value in (0, -1, float("nan"), float("inf"), "1e-3", True, None):
        refuses(check_positive, ({"lr": value}, f"lr = {value!r}: give a positive number"))
    for value in ("c", None, ["a"]):
        arguments = dict(value=value, choices=("a", "b"))
        refuses(partial(check_choice, "mode"), (arguments, "mode = .* is not known: choose one of a, b"))
    check_whole(1, steps=1)
    check_positive(lr=1e-30)
    check_choice("mode", "a", ("a", "b"))
