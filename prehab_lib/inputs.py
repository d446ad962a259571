"""Numbers people type, checked in one sentence."""

import math
from numbers import Real


def check_whole(least: int, **given) -> None:
    """Raises ValueError naming the first argument that is no whole number of at least `least`."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} = {value!r}: give a whole number, {least} or larger")


def check_positive(**given) -> None:
    """Raises ValueError naming the first argument that is no finite number above 0."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} = {value!r}: give a positive number")
