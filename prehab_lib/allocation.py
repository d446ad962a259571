"""Which layer gets which rank.

An allocation is a function (decompositions, removed, *, model, stats, task_loss, batches, **options) -> {layer: rank},
where None means that the layer stays dense.  It sees the spectra of every layer at once and changes nothing.
"""

from collections.abc import Callable

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.weightings import Decomposition


def uniform(decompositions: dict[str, Decomposition], removed: float, **_) -> dict[str, int | None]:
    """The same `removed` for every layer, each by its own shape; dense where no rank saves parameters.

    Source: SVD-LLM (arXiv 2403.07378), and Tables II to V.  Raises ValueError for a bad `removed`.
    """
    check_removed(removed)
    shapes = {name: shape_of(decomposition) for name, decomposition in decompositions.items()}
    return {name: rank_for(shape, removed) if break_even_rank(shape) else None for name, shape in shapes.items()}


ALLOCATIONS: dict[str, Callable[..., dict[str, int | None]]] = {"uniform": uniform}


def allocation_named(name: str) -> Callable[..., dict[str, int | None]]:
    """The function behind a name.  Raises ValueError that lists the known names."""
    if name not in ALLOCATIONS:
        raise ValueError(f"allocation = {name!r} is not known: choose one of {', '.join(ALLOCATIONS)}")
    return ALLOCATIONS[name]


def shape_of(decomposition: Decomposition) -> tuple[int, int]:
    """(m, n) of the weight behind a decomposition."""
    return decomposition.left.shape[0], decomposition.right.shape[1]
