"""ASVD's sensitivity search: spend the budget where truncating one layer alone hurts most.

Source: ASVD (arXiv 2312.05821), truncation-rank search.  Its code counts a fraction of m n and
applies its binary search's last midpoint; here what is stored counts, and the cut always fits: it
ends within one step of one layer of the budget.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

from torch import nn

from prehab_lib.budget import check_removed, rank_for
from prehab_lib.progress import progress
from prehab_lib.rivals import shared
from prehab_lib.rivals.shared import Cuts, Ranks

NAME = "allocation 'sensitivity'"
CANDIDATES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # kept fractions of a layer, as in ASVD's code

Losses = dict[str, dict[int, float]]  # layer -> rank -> mean task loss, that layer alone at it


def sensitivity(
    decompositions: Cuts,
    removed: float,
    *,
    model: nn.Module | None = None,
    stats=None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation=None,
    losses: Losses | None = None,
) -> Ranks:
    """Each layer takes the smallest candidate rank that alone stays below one threshold, or None.

    The threshold is the lowest whose parameters, r (m + n) a layer, fit the budget.  Equal losses
    fall in the order of rank and name; a loss that is not finite is worse than any other.  Where
    not even the smallest candidates fit, a layer takes its uniform rank if that is smaller still.
    losses: from `solo_losses`; without them it is called: layers × CANDIDATES passes over
    `batches`.
    Raises ValueError for a bad `removed`, or naming what is missing.
    """
    kept = 1 - check_removed(removed)
    shapes = shared.compressible(decompositions)
    if losses is None:
        losses = solo_losses(decompositions, model, task_loss, batches)
    missing = [name for name in shapes if not losses.get(name)]
    if missing:
        raise ValueError(f"losses lack layer {missing[0]!r}: measure them with asvd.solo_losses")
    worst_first = []
    for name in shapes:
        for rank, loss in losses[name].items():
            worst_first.append((-loss if math.isfinite(loss) else -math.inf, rank, name))
    worst_first.sort()

    def stored(struck: int) -> int:
        return shared.parameters(shapes, _smallest(shapes, worst_first[struck:]))

    # The more of the worst trials are struck out, the larger are the ranks that the others leave.
    budget = kept * sum(m * n for m, n in shapes.values())
    struck = bisect_right(range(len(worst_first) + 1), budget, key=stored) - 1
    ranks = _smallest(shapes, worst_first[max(struck, 0) :])
    if struck < 0:  # not even the smallest candidates fit
        ranks = {name: min(rank, rank_for(shapes[name], removed)) for name, rank in ranks.items()}
    return {name: ranks.get(name) for name in decompositions}


def check_arguments(task_loss=None, batches=None, losses=None) -> None:
    """Raises ValueError naming what the search will ask for, before anything is decomposed."""
    if losses is None:
        shared.check_given(NAME, task_loss=task_loss, batches=batches)


def solo_losses(
    decompositions: Cuts,
    model: nn.Module | None,
    task_loss: Callable | None,
    batches: Iterable | None,
    candidates: Iterable[float] = CANDIDATES,
) -> Losses:
    """Mean `task_loss` over `batches` for each layer and candidate rank, all other layers dense.

    candidates: kept fractions, between 0 and 1.  Raises ValueError for another, or naming what is
    missing.
    """
    shared.check_given(NAME, model=model, task_loss=task_loss, batches=batches)
    removed = [1 - Fraction(str(kept)) for kept in candidates]
    trials = []
    for name, shape in shared.compressible(decompositions).items():
        ranks = {rank_for(shape, fraction) for fraction in removed}
        trials += [(name, rank) for rank in sorted(ranks)]
    losses: Losses = {name: {} for name, _ in trials}
    for name, rank in progress(trials, "sensitivity"):
        losses[name][rank] = shared.loss_at(model, decompositions, {name: rank}, task_loss, batches)
    return losses


def _smallest(shapes: Mapping, trials: list[tuple[float, int, str]]) -> Ranks:
    """The smallest rank that each layer has among the trials; None, dense, where it has none."""
    ranks: Ranks = dict.fromkeys(shapes)
    for _, rank, name in trials:
        ranks[name] = min(rank, ranks[name] or rank)
    return ranks
