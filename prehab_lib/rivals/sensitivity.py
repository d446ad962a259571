"""Sensitivity search: truncate each layer alone, look at the task loss, and spend the budget where
it hurts most.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from numbers import Real

from torch import nn

from prehab_lib.budget import check_removed, rank_for
from prehab_lib.decomposition import Decomposition
from prehab_lib.progress import progress
from prehab_lib.rivals.ranks import compressible, parameters
from prehab_lib.rivals.trial import check_given, loss_at
from prehab_lib.stats import LayerStats

CANDIDATES = (
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
)  # kept fractions of a layer; ASVD's code starts at 0.4

Losses = dict[
    str, dict[int, float]
]  # layer -> rank -> mean task loss with that layer alone at that rank


def sensitivity(
    decompositions: Mapping[str, Decomposition],
    removed: float,
    *,
    model: nn.Module | None = None,
    stats: Mapping[str, LayerStats] | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation=None,
    candidates: Iterable[float] = CANDIDATES,
    losses: Losses | None = None,
) -> dict[str, int | None]:
    """One threshold on the task loss: each layer takes the smallest candidate rank that alone stays
    below it, or stays dense.

    The threshold is the lowest whose parameters, r (m + n) a layer, fit the budget.  So a larger
    budget gives no layer a smaller rank.  Equal losses fall in the order of rank and name; a loss
    that is not finite is worse than any other. Where not even the smallest candidates fit, every
    layer takes its uniform rank if that is smaller still.

    candidates: kept fractions.  losses: from `solo_losses`, to search many budgets with one
    measurement; model, task_loss and batches are then not needed.  Cost otherwise: layers ×
    candidates passes over `batches`.

    Source: ASVD (arXiv 2312.05821), sensitivity-based truncation-rank search.  Its code counts the
    budget as a fraction of m n and applies the last midpoint of its binary search; here the budget
    is what is stored, and the cut always fits it. Raises ValueError for a bad `removed` or
    candidate, or naming what is missing.
    """
    kept = 1 - check_removed(removed)
    shapes = compressible(decompositions)
    if losses is None:
        losses = solo_losses(decompositions, model, task_loss, batches, candidates)
    if missing := [name for name in shapes if not losses.get(name)]:
        raise ValueError(
            f"losses lack layer {missing[0]!r}: measure them with sensitivity.solo_losses"
        )
    worst_first = _worst_first({name: losses[name] for name in shapes})
    budget = kept * sum(m * n for m, n in shapes.values())
    cuts = range(len(worst_first) + 1)
    cut = (
        bisect_right(
            cuts,
            budget,
            key=lambda cut: parameters(shapes, _smallest_left(shapes, worst_first[cut:])),
        )
        - 1
    )
    ranks = _smallest_left(shapes, worst_first[max(cut, 0) :])
    if cut < 0:
        ranks = {name: min(rank, rank_for(shapes[name], removed)) for name, rank in ranks.items()}
    return {name: ranks.get(name) for name in decompositions}


def check_arguments(task_loss=None, batches=None, losses=None, **_) -> None:
    if losses is None:
        check_given("allocation 'sensitivity'", task_loss=task_loss, batches=batches)


def solo_losses(
    decompositions: Mapping[str, Decomposition],
    model: nn.Module | None,
    task_loss: Callable | None,
    batches: Iterable | None,
    candidates: Iterable[float] = CANDIDATES,
) -> Losses:
    """Mean `task_loss` over `batches` with one layer truncated and all others dense, for every
    layer and candidate rank.

    Each truncation is a slice of the given decomposition.  Candidates that come to the same rank
    are measured once. Raises ValueError for a bad candidate, or naming what is missing.
    """
    check_given("allocation 'sensitivity'", model=model, task_loss=task_loss, batches=batches)
    fractions = [_check_candidate(candidate) for candidate in candidates]
    if not fractions:
        raise ValueError("candidates is empty: give at least one kept fraction")
    shapes = compressible(decompositions)
    trials = [
        (name, rank)
        for name, shape in shapes.items()
        for rank in sorted({rank_for(shape, 1 - fraction) for fraction in fractions})
    ]
    losses: Losses = {name: {} for name in shapes}
    for name, rank in progress(trials, "sensitivity"):
        losses[name][rank] = loss_at(model, decompositions, {name: rank}, task_loss, batches)
    return losses


def _worst_first(losses: Losses) -> list[tuple[str, int]]:
    """(layer, rank) from the largest loss to the smallest."""
    trials = [
        (-loss if math.isfinite(loss) else -math.inf, rank, name)
        for name, by_rank in losses.items()
        for rank, loss in by_rank.items()
    ]
    return [(name, rank) for _, rank, name in sorted(trials)]


def _smallest_left(shapes: Mapping, trials: list[tuple[str, int]]) -> dict[str, int | None]:
    """The smallest rank each layer has among the trials; None, dense, where it has none."""
    ranks: dict[str, int | None] = dict.fromkeys(shapes)
    for name, rank in trials:
        ranks[name] = min(rank, ranks[name] or rank)
    return ranks


def _check_candidate(kept: float) -> Fraction:
    if isinstance(kept, bool) or not isinstance(kept, Real) or not 0 < kept < 1:
        raise ValueError(f"candidates has {kept!r}: give kept fractions strictly between 0 and 1")
    return Fraction(str(kept))
