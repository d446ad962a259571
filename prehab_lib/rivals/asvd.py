"""ASVD's sensitivity search: truncate each layer alone, look at the task loss, and spend the budget
where it hurts most.
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

# Kept fractions of a layer; ASVD's code starts at 0.4.
CANDIDATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Losses = dict[str, dict[int, float]]  # layer -> rank -> mean task loss, that layer alone at it


def sensitivity(
    decompositions: Mapping[str, Decomposition],
    removed: float,
    *,
    model: nn.Module | None = None,
    stats: Mapping[str, LayerStats] | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation=None,
    losses: Losses | None = None,
) -> dict[str, int | None]:
    """One threshold on the task loss: each layer takes the smallest candidate rank that alone stays
    below it, or stays dense.

    The threshold is the lowest whose parameters, r (m + n) a layer, fit the budget.  Equal losses
    fall in the order of rank and name; a loss that is not finite is worse than any other.  Where
    not even the smallest candidates fit, a layer takes its uniform rank if that is smaller still.

    losses: from `solo_losses`, to search many budgets with one measurement; then model, task_loss
    and batches are not needed.  Cost otherwise: layers × candidates passes over `batches`.

    Source: ASVD (arXiv 2312.05821), truncation-rank search.  Its code counts a fraction of m n and
    applies its binary search's last midpoint; here what is stored counts, and the cut always fits.
    Raises ValueError for a bad `removed`, or naming what is missing.
    """
    kept = 1 - check_removed(removed)
    shapes = compressible(decompositions)
    if losses is None:
        losses = solo_losses(decompositions, model, task_loss, batches)
    missing = [name for name in shapes if not losses.get(name)]
    if missing:
        raise ValueError(f"losses lack layer {missing[0]!r}: measure them with asvd.solo_losses")
    trials = _worst_first({name: losses[name] for name in shapes})

    def stored(struck: int) -> int:
        return parameters(shapes, _smallest(shapes, trials[struck:]))

    # The more of the worst trials are struck out, the larger are the ranks that the others leave.
    budget = kept * sum(m * n for m, n in shapes.values())
    struck = bisect_right(range(len(trials) + 1), budget, key=stored) - 1
    if struck >= 0:
        ranks = _smallest(shapes, trials[struck:])
    else:  # not even the smallest candidates fit
        smallest = _smallest(shapes, trials)
        ranks = {name: min(smallest[name], rank_for(shapes[name], removed)) for name in shapes}
    return {name: ranks.get(name) for name in decompositions}


def check_arguments(task_loss=None, batches=None, losses=None, **_) -> None:
    """Raises ValueError naming what the search will ask for, before anything is decomposed."""
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

    candidates: kept fractions; those that come to the same rank are measured once.  Each truncation
    is a slice of the given decomposition.  Raises ValueError for a bad candidate, or naming what is
    missing.
    """
    check_given("allocation 'sensitivity'", model=model, task_loss=task_loss, batches=batches)
    fractions = [_check_candidate(candidate) for candidate in candidates]
    if not fractions:
        raise ValueError("candidates is empty: give at least one kept fraction")
    trials = []
    for name, shape in compressible(decompositions).items():
        ranks = {rank_for(shape, 1 - fraction) for fraction in fractions}
        trials += [(name, rank) for rank in sorted(ranks)]
    losses: Losses = {name: {} for name, _ in trials}
    for name, rank in progress(trials, "sensitivity"):
        losses[name][rank] = loss_at(model, decompositions, {name: rank}, task_loss, batches)
    return losses


def _worst_first(losses: Losses) -> list[tuple[str, int]]:
    """(layer, rank) from the largest loss to the smallest."""
    trials = []
    for name, by_rank in losses.items():
        for rank, loss in by_rank.items():
            trials.append((-loss if math.isfinite(loss) else -math.inf, rank, name))
    return [(name, rank) for _, rank, name in sorted(trials)]


def _smallest(shapes: Mapping, trials: list[tuple[str, int]]) -> dict[str, int | None]:
    """The smallest rank that each layer has among the trials; None, dense, where it has none."""
    ranks: dict[str, int | None] = dict.fromkeys(shapes)
    for name, rank in trials:
        ranks[name] = min(rank, ranks[name] or rank)
    return ranks


def _check_candidate(kept: float) -> Fraction:
    if isinstance(kept, bool) or not isinstance(kept, Real) or not 0 < kept < 1:
        raise ValueError(f"candidates has {kept!r}: give kept fractions strictly between 0 and 1")
    return Fraction(str(kept))
