"""Which layer gets which rank.

An allocation is a function (decompositions, removed, *, model, stats, task_loss, batches,
validation, **options) -> {layer: rank}, where None means that the layer stays dense.  It sees the
spectra of every layer at once and changes nothing.

Whoever hands out, over the layers in which some rank saves parameters Σ r (m + n), with m n for a
dense one, stays within (1 − removed) Σ m n, but for what rank 1, the least there is, costs beyond a
layer's own share.  Zero-sum and greedy spend one budget over all layers instead, also those that
stay dense, and refuse one that cannot be met.
"""

from collections.abc import Callable

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.decomposition import Decomposition
from prehab_lib.rivals import asvd, dobi, swift_svd, zero_sum
from prehab_lib.rivals.svd_llm_v2 import grouped


def uniform(decompositions: dict[str, Decomposition], removed: float, **_) -> dict[str, int | None]:
    """The same `removed` for every layer, each by its own shape; dense where no rank saves
    parameters.

    Source: SVD-LLM (arXiv 2403.07378), and Tables II to V.  Raises ValueError for a bad `removed`.
    """
    check_removed(removed)
    shapes = {name: tuple(decomposition.shape) for name, decomposition in decompositions.items()}
    return {
        name: rank_for(shape, removed) if break_even_rank(shape) else None
        for name, shape in shapes.items()
    }


ALLOCATIONS: dict[str, Callable[..., dict[str, int | None]]] = {
    "uniform": uniform,
    "sensitivity": asvd.sensitivity,
    "grouped": grouped,
    "importance": swift_svd.importance,
    "zero_sum": zero_sum.zero_sum,
    "greedy": zero_sum.greedy,
    "learned": dobi.learned,
}

# What looks at the arguments and options of an allocation before anything is decomposed.
CHECKS: dict[str, Callable[..., None]] = {
    "sensitivity": asvd.check_arguments,
    "importance": swift_svd.check_arguments,
    "zero_sum": zero_sum.check_arguments,
    "greedy": zero_sum.check_greedy,
    "learned": dobi.check_arguments,
}


def allocation_named(name: str) -> Callable[..., dict[str, int | None]]:
    """The function behind a name.  Raises ValueError that lists the known names."""
    if name not in ALLOCATIONS:
        raise ValueError(
            f"allocation = {name!r} is not known: choose one of {', '.join(ALLOCATIONS)}"
        )
    return ALLOCATIONS[name]
