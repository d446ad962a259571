"""Which term of prehab's objective a caller's words ask for."""

from collections.abc import Callable
from functools import partial

from prehab_lib.fast.fast_term import FastTerm
from prehab_lib.inputs import check_whole
from prehab_lib.rank_term import RankTerm
from prehab_lib.rivals.tail import Tail, TailTerm
from prehab_lib.surrogates import surrogate_named

ARITHMETIC = {
    "exact": "float64",
    "fast": "float32",
}  # and the precision each has unless told otherwise


def term_of(
    surrogate: str | Tail,
    arithmetic: str = "exact",
    refresh: int = 1,
    power_iterations: int | None = None,
) -> Callable[..., RankTerm]:
    """(layers, stats, ...) -> the term.  Raises ValueError for an unknown name, or options that the
    term does not have.
    """
    if arithmetic not in ARITHMETIC:
        raise ValueError(
            f"arithmetic = {arithmetic!r} is not known: choose one of {', '.join(ARITHMETIC)}"
        )
    check_whole(1, refresh=refresh)
    if surrogate == "tail":
        raise ValueError(
            "surrogate 'tail' needs planned ranks: pass surrogate=prehab_lib.rivals.tail.Tail(ranks={layer: rank or None})"
        )
    exact = None if isinstance(surrogate, Tail) else surrogate_named(surrogate)
    if arithmetic == "fast" and exact is not None:
        return partial(FastTerm, surrogate, refresh, power_iterations, exact)
    given = dict(
        arithmetic=arithmetic if arithmetic == "fast" else None, power_iterations=power_iterations
    )
    given["refresh"] = refresh if refresh > 1 else None
    if others := [name for name, value in given.items() if value is not None]:
        where = (
            "for surrogates that go by a name, not for a Tail"
            if exact is None
            else "for arithmetic='fast'"
        )
        raise ValueError(f"{others[0]} = {given[others[0]]!r} is {where}: leave it out")
    return partial(TailTerm, surrogate) if exact is None else partial(RankTerm, exact)
