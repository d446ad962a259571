"""What people hand in, checked in one sentence: numbers, names, how much calibration data."""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Real

# For every number that a least-squares problem fits; fewer leave its small directions to chance.
TOKENS_EACH = 10


def check_whole(least: int, **arguments) -> None:
    """Raises ValueError naming the first argument that is no whole number of at least `least`."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} = {value!r}: give a whole number, {least} or larger")


def check_positive(**arguments) -> None:
    """Raises ValueError naming the first argument that is no finite number above 0."""
    for name, value in arguments.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise ValueError(f"{name} = {value!r}: give a positive number")


def check_choice(name: str, value, choices: Iterable) -> None:
    """Raises ValueError that lists the choices where `value`, an option called `name`, is none."""
    if value not in list(choices):
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} = {value!r} is not known: choose one of {listed}")


def check_settings(name: str, options: Mapping, choices: Iterable[str]) -> None:
    """Raises ValueError where `options`, a setting called `name`, has an unknown entry."""
    for key in options:
        if key not in choices:
            listed = ", ".join(choices)
            raise ValueError(f"{name} has an unknown entry {key!r}: choose from {listed}")


def check_options(name: str, options: Mapping, function: Callable) -> None:
    """As `check_settings`, for the arguments of a function."""
    check_settings(name, options, inspect.signature(function).parameters)


def warn_if_few_tokens(
    what: str, counts: Mapping[str, tuple[int, int]], per: str, stacklevel: int
) -> None:
    """Warns of layers that saw fewer than 10 tokens for each of their channels or ranks.

    counts: layer -> (tokens, channels or rank).  what, per: "layers saw", "rank".
    """
    few = [name for name, (tokens, size) in counts.items() if tokens < TOKENS_EACH * size]
    if few:
        least = min(few, key=lambda name: counts[name][0] / counts[name][1])
        tokens, size = counts[least]
        warnings.warn(
            f"{len(few)} of {len(counts)} {what} fewer than {TOKENS_EACH} tokens per {per}; the "
            f"least is {least!r} with {tokens} tokens for {size}: use more calibration data",
            stacklevel=stacklevel + 1,
        )
