"""Which layer gets which rank: the uniform answer, and the table of all.

An allocation is a function (decompositions, removed, *, model, stats, task_loss, batches,
validation, **options) -> {layer: rank}, None for dense.  It changes nothing.

The budget is Σ cost ≤ (1 − removed) Σ m n, where rank r costs r (m + n) and a dense layer m n, over
the layers in which some rank saves parameters.  Each gets rank 1 at least, also beyond its share.
Zero-sum and greedy sum over all layers instead, and refuse a budget that cannot be met.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, update_wrapper
from inspect import signature

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.decomposition import Decomposition
from prehab_lib.inputs import check_choice, check_options, check_settings, check_whole
from prehab_lib.rivals import asvd, dobi, swift_svd, zero_sum
from prehab_lib.rivals.shared import DATA
from prehab_lib.rivals.svd_llm_v2 import grouped

Ranks = dict[str, int | None]
# What allocations and recoveries are handed; every other argument of theirs is an option.
GIVEN = ("decompositions", "removed", "model", "stats", "weighting", *DATA)


@dataclass(frozen=True)
class Step:
    """A row of `ALLOCATIONS` or of `methods.RECOVERIES`; it is called as its function is.

    check raises ValueError naming what the function will miss, before hours of work.  It gets what
    it names of `GIVEN`, and the options, which are its other arguments, or those of `settings`.
    shapes_only: of decompositions the function asks `.shape`.
    """

    function: Callable
    check: Callable[..., None] | None = None
    shapes_only: bool = False
    settings: Callable | None = None

    def __call__(self, *args, **kwargs):
        self.check_options(kwargs.keys() - GIVEN)
        return self.function(*args, **kwargs)

    def check_options(self, options: Iterable[str]) -> None:
        """Raises ValueError that lists the options there are, for one that is none."""
        what = f"the set of options for {getattr(self.function, '__name__', 'a function')!r}"
        check_options(what, options, self.settings or self.check or self.function, GIVEN)

    def check_arguments(self, data: Mapping, options: Mapping) -> None:
        """`check` on the data it looks at and on the options.  Raises ValueError as it does."""
        self.check_options(options)
        check = self.check or (lambda **options: None)
        looked_at = signature(check).parameters.keys() & data.keys()
        check(**{name: data[name] for name in looked_at}, **options)


def uniform(decompositions: Mapping[str, Decomposition], removed: float, **given) -> Ranks:
    """The same `removed` for every layer, each by its own shape; dense where no rank saves any.

    Source: SVD-LLM (arXiv 2403.07378), and Tables II to V.  Raises ValueError for a bad `removed`.
    """
    check_removed(removed)
    check_settings("the set of options for 'uniform'", given.keys() - GIVEN, ())
    ranks = {}
    for name, decomposition in decompositions.items():
        shape = tuple(decomposition.shape)
        ranks[name] = rank_for(shape, removed) if break_even_rank(shape) else None
    return ranks


def given(ranks: Ranks, decompositions: Mapping, removed: None = None, **_) -> Ranks:
    """Ranks of one's own, dense where there is none.  Raises ValueError for one that saves none."""
    if removed is not None:
        raise ValueError(f"removed = {removed!r}: the ranks are given, pass None")
    for name, rank in ranks.items():
        if name not in decompositions:
            raise ValueError(f"{name!r} has a rank, but is none of the layers to cut")
        if rank is not None:
            most = break_even_rank(tuple(decompositions[name].shape))
            check_whole(1, most, **{f"rank of {name}": rank})
    return {name: ranks.get(name) for name in decompositions}


ALLOCATIONS: dict[str, Step] = {
    "uniform": Step(uniform, lambda: None, shapes_only=True),
    "sensitivity": Step(asvd.sensitivity, asvd.check_arguments),
    "grouped": Step(grouped, lambda: None),
    "importance": Step(swift_svd.importance, swift_svd.check_arguments),
    "zero_sum": Step(zero_sum.zero_sum, zero_sum.check_arguments),
    "greedy": Step(zero_sum.greedy, zero_sum.check_greedy),
    "learned": Step(dobi.learned, dobi.check_arguments, settings=dobi.Settings),
}


def step_named(axis: str, name: str | Ranks, table: Mapping[str, Step | Callable]) -> Step:
    """The row of a table, also of a plain function; or `given`.  Raises ValueError that lists."""
    if isinstance(name, Mapping):
        return Step(update_wrapper(partial(given, name), given), lambda: None, shapes_only=True)
    check_choice(axis, name, table)
    row = table[name]
    return row if isinstance(row, Step) else Step(row)
