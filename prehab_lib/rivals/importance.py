"""Dynamic ranks: among layers of one type, rank goes to the blocks that matter and the layers that
lose most.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from numbers import Real

from torch import nn

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.decomposition import Decomposition
from prehab_lib.progress import progress
from prehab_lib.rivals.ranks import compressible, groups_of_one_type, root_loss, share_out
from prehab_lib.rivals.trial import check_given, loss_at
from prehab_lib.stats import LayerStats

ALPHAS = tuple(tenths / 10 for tenths in range(11))  # 0, 0.1 … 1


def importance(
    decompositions: Mapping[str, Decomposition],
    removed: float,
    *,
    model: nn.Module | None = None,
    stats: Mapping[str, LayerStats] | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
    alpha: float | None = None,
    delta: float = 0.5,
) -> dict[str, int | None]:
    """Every layer gets δ of its uniform rank k̄; the rest of its type's ranks go out in proportion
    to a score s_i.

    s_i = β_i^α · log(e + ε_i)^(1−α), with β_i the influence of the layer's block scaled to [1, 2]
    within the type, and ε_i the loss at k̄ (`ranks.root_loss`, so the answer depends on the scale
    of the ruler).  Whole ranks by largest remainder: a type keeps exactly the sum of its uniform
    ranks.  No rank passes break-even; what that cuts off goes to the others.

    alpha: α.  None tries 0, 0.1 … 1 and keeps the one with the lowest mean `task_loss` over
    `validation`, or over `batches` where no validation is given (then ranks are chosen on
    calibration data); the smallest of equals.  That costs one pass for each distinct plan, at most
    11.  delta: δ.

    Source: Swift-SVD (arXiv 2604.01609), dynamic ranks as its text has them; its code takes another
    loss, floor and log. Raises ValueError for a bad `removed`, alpha or delta, or naming what is
    missing.
    """
    check_removed(removed)
    _check_fraction(delta=delta)
    if alpha is not None:
        _check_fraction(alpha=alpha)
        ranks = _ranks(decompositions, removed, stats, alpha, delta)
    else:
        check_arguments(task_loss, batches, validation)
        check_given("allocation 'importance' without alpha", model=model)
        data = batches if validation is None else validation
        plans = [_ranks(decompositions, removed, stats, alpha, delta) for alpha in ALPHAS]
        ranks = _best(plans, lambda plan: loss_at(model, decompositions, plan, task_loss, data))
    return {name: ranks.get(name) for name in decompositions}


def check_arguments(
    task_loss=None, batches=None, validation=None, alpha: float | None = None, **_
) -> None:
    if alpha is None:
        data = {"batches": batches} if validation is None else {"validation": validation}
        check_given("allocation 'importance' without alpha", task_loss=task_loss, **data)


def _best(plans: list[dict[str, int]], loss: Callable[[dict[str, int]], float]) -> dict[str, int]:
    """The first plan with the lowest loss; equal plans are measured once, and a single one not at
    all.
    """
    distinct = [plan for number, plan in enumerate(plans) if plan not in plans[:number]]
    return distinct[0] if len(distinct) == 1 else min(progress(distinct, "importance"), key=loss)


def _ranks(
    decompositions: Mapping[str, Decomposition],
    removed: float,
    stats: Mapping[str, LayerStats] | None,
    alpha: float,
    delta: float,
) -> dict[str, int]:
    shapes, ranks = compressible(decompositions), {}
    for group in groups_of_one_type(shapes):
        shape = shapes[group[0]]
        uniform = rank_for(shape, removed)
        least = max(1, math.ceil(Fraction(str(delta)) * uniform))
        scores = _scores(
            {name: decompositions[name] for name in group}, uniform, stats or {}, alpha
        )
        pool = len(group) * (uniform - least)
        extra = share_out(pool, scores, dict.fromkeys(group, break_even_rank(shape) - least))
        ranks |= {name: least + more for name, more in _whole(extra, scores).items()}
    return ranks


def _scores(
    group: Mapping[str, Decomposition], rank: int, stats: Mapping[str, LayerStats], alpha: float
) -> dict[str, float]:
    """s_i of the layers of one type; all 1 for a layer alone in its type, which has nobody to share
    with.
    """
    if len(group) == 1:
        return dict.fromkeys(group, 1.0)
    found = {name: stats.get(name) or LayerStats() for name in group}
    wanted_by = "allocation 'importance' for layer {!r}"
    influence = {name: found[name].need("influence", wanted_by.format(name)) for name in group}
    low, high = min(influence.values()), max(influence.values())
    beta = {
        name: 1 + (value - low) / (high - low) if high > low else 1.0
        for name, value in influence.items()
    }
    loss = {name: root_loss(group[name], rank, found[name]) for name in group}
    return {
        name: beta[name] ** alpha * math.log(math.e + loss[name]) ** (1 - alpha) for name in group
    }


def _whole(shares: Mapping[str, Fraction], scores: Mapping[str, float]) -> dict[str, int]:
    """Shares in whole numbers of the same sum: rounded down, then one more for the largest
    remainders.
    """
    whole = {name: math.floor(share) for name, share in shares.items()}
    left = round(sum(shares.values())) - sum(whole.values())
    by_remainder = sorted(
        shares, key=lambda name: (whole[name] - shares[name], -scores[name], name)
    )
    return whole | {name: whole[name] + 1 for name in by_remainder[:left]}


def _check_fraction(**given: float) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} = {value!r}: give a number from 0 to 1")
