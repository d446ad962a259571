"""What people hand in, checked in one sentence: numbers they type, and the amount of calibration
data.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from numbers import Real

TOKENS_EACH = (
    10  # for every number a least-squares problem fits; fewer leave its small directions to chance
)


def check_whole(least: int, **given) -> None:
    """Raises ValueError naming the first argument that is no whole number of at least `least`."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} = {value!r}: give a whole number, {least} or larger")


def check_positive(**given) -> None:
    """Raises ValueError naming the first argument that is no finite number above 0."""
    for name, value in given.items():
        if (
            isinstance(value, bool)
            or not isinstance(value, Real)
            or not math.isfinite(value)
            or value <= 0
        ):
            raise ValueError(f"{name} = {value!r}: give a positive number")


def check_known(known: Iterable[str], **given) -> None:
    """Raises ValueError naming the first argument whose value is none of the known ones."""
    for name, value in given.items():
        if value not in known:
            raise ValueError(f"{name} = {value!r} is not known: choose one of {', '.join(known)}")


def check_options(name: str, options: Mapping, function: Callable) -> None:
    """Raises ValueError where `options`, a setting called `name`, has an entry that `function`
    takes no argument for.
    """
    check_settings(name, options, inspect.signature(function).parameters)


def check_settings(name: str, options: Mapping, known: Iterable[str]) -> None:
    """Raises ValueError where `options`, a setting called `name`, has an entry that is not among
    the known ones.
    """
    if unknown := [key for key in options if key not in known]:
        raise ValueError(
            f"{name} has an unknown entry {unknown[0]!r}: choose from {', '.join(known)}"
        )


def warn_if_few_tokens(
    what: str, seen: Mapping[str, tuple[int, int]], per: str, stacklevel: int
) -> None:
    """Warns of layers that saw fewer than 10 tokens for each of their channels or ranks.

    seen: layer -> (tokens, channels or rank).  what, per: "layers saw", "rank".
    """
    few = {
        name: (tokens, size) for name, (tokens, size) in seen.items() if tokens < TOKENS_EACH * size
    }
    if few:
        name, (tokens, size) = min(few.items(), key=lambda entry: entry[1][0] / entry[1][1])
        warnings.warn(
            f"{len(few)} of {len(seen)} {what} fewer than {TOKENS_EACH} tokens per {per}; the least is {name!r} with "
            f"{tokens} tokens for {size}: use more calibration data",
            stacklevel=stacklevel + 1,
        )
