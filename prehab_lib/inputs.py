"""What people hand in, checked in one sentence: numbers and names."""

import inspect
from collections.abc import Callable, Iterable
from numbers import Integral, Real

MOST = 2**31 - 1  # of whatever is counted: steps, windows, ranks
SEEDS = 2**32 - 1  # the largest seed that every library takes


def check_whole(least: int, most: int = MOST, /, **arguments) -> None:
    """Raises ValueError naming the first argument that is no whole number in [least, most]."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} = {value!r}: give a whole number, {least} or larger")
        if value > most:
            raise ValueError(f"{name} = {value!r}: give a whole number, {most} at most")


def check_seed(seed: int) -> None:
    """Raises ValueError unless `seed` is a whole number from 0 to `SEEDS`."""
    check_whole(0, SEEDS, seed=seed)


def check_positive(**arguments) -> None:
    """Raises ValueError naming the first argument that is no number above 0 that float32 holds."""
    for name, value in arguments.items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1e38:
            raise ValueError(f"{name} = {value!r}: give a positive number")


def check_choice(name: str, value, choices: Iterable) -> None:
    """Raises ValueError that lists the choices where `value`, an option called `name`, is none."""
    if value not in list(choices):
        listed = ", ".join(str(choice) for choice in choices)
        raise ValueError(f"{name} = {value!r} is not known: choose one of {listed}")


def check_settings(name: str, options: Iterable[str], choices: Iterable[str]) -> None:
    """Raises ValueError where `options`, a setting called `name`, has an unknown entry."""
    for key in options:
        if key not in choices:
            remedy = f"choose from {', '.join(choices)}" if choices else "there is none to choose"
            raise ValueError(f"{name} has an unknown entry {key!r}: {remedy}")


def check_options(
    name: str, options: Iterable[str], function: Callable, given: Iterable[str] = ()
) -> None:
    """As `check_settings`, for the arguments of a function, but for those that are `given` to it.

    A function that takes any keyword takes any option.
    """
    known = inspect.signature(function).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known.values()):
        check_settings(name, options, [key for key in known if key not in given])
