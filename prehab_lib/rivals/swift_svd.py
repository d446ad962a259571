"""Swift-SVD's dynamic ranks: rank goes to the blocks that matter and the layers that lose most.

Source: Swift-SVD (arXiv 2604.01609), its text; its code takes another loss, floor and log.
"""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial

from torch import nn

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.progress import progress
from prehab_lib.rivals import shared
from prehab_lib.rivals.shared import Cuts, Ranks, Stats
from prehab_lib.stats import LayerStats

ALPHAS = tuple(tenths / 10 for tenths in range(11))  # 0, 0.1 … 1
DELTA = Fraction(1, 2)  # the share of its uniform rank that every layer keeps


def importance(
    decompositions: Cuts,
    removed: float,
    *,
    model: nn.Module | None = None,
    stats: Stats | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
    alpha: float | None = None,
) -> Ranks:
    """Every layer gets half of its uniform rank k̄; the rest of its type's ranks goes out in
    proportion to a score s_i = β_i^α · log(e + ε_i)^(1−α).

    β_i is the influence of the layer's block, scaled to [1, 2] within the type, and ε_i the loss at
    k̄ (`root_loss`, so the answer depends on the scale of the ruler).  A type keeps exactly
    the sum of its uniform ranks; no rank passes break-even, and the others get what that cuts off.

    alpha: α.  None tries 0, 0.1 … 1 and keeps the one with the lowest mean `task_loss` over
    `validation`, or over `batches` where there is none (then calibration data choose), the smallest
    of equals.  That costs one pass for each distinct plan.  Raises ValueError for a bad `removed`
    or alpha, or naming what is missing.
    """
    check_removed(removed)
    check_arguments(task_loss, batches, validation, alpha)
    if alpha is not None:
        ranks = _ranks(decompositions, removed, stats, alpha)
    else:
        shared.check_given("allocation 'importance' without alpha", model=model)
        data = batches if validation is None else validation
        plans: list[Ranks] = []  # each once: several α may give one plan
        for choice in ALPHAS:
            plan = _ranks(decompositions, removed, stats, choice)
            if plan not in plans:
                plans.append(plan)
        loss = partial(shared.loss_at, model, decompositions, task_loss=task_loss, batches=data)
        ranks = plans[0] if len(plans) == 1 else min(progress(plans, "importance"), key=loss)
    return {name: ranks.get(name) for name in decompositions}


def check_arguments(task_loss=None, batches=None, validation=None, alpha=None) -> None:
    """Raises ValueError naming what the choice of α will ask for, before anything is decomposed."""
    shared.check_share(alpha=0.5 if alpha is None else alpha)
    if alpha is None:
        data = {"batches": batches} if validation is None else {"validation": validation}
        shared.check_given("allocation 'importance' without alpha", task_loss=task_loss, **data)


def _ranks(decompositions: Cuts, removed: float, stats: Stats | None, alpha: float) -> Ranks:
    shapes = shared.compressible(decompositions)
    ranks: Ranks = {}
    for names in shared.groups_of_one_type(shapes):
        shape = shapes[names[0]]
        uniform = rank_for(shape, removed)
        least = max(1, math.ceil(DELTA * uniform))
        group = {name: decompositions[name] for name in names}
        scores = _scores(group, uniform, stats or {}, alpha)
        caps = dict.fromkeys(names, break_even_rank(shape) - least)
        extra = shared.share_out(len(names) * (uniform - least), scores, caps)
        # Whole numbers of the same sum: of equal remainders the higher score gets one more.
        whole = {name: math.floor(share) for name, share in extra.items()}
        left = round(sum(extra.values())) - sum(whole.values())
        order = sorted((whole[name] - extra[name], -scores[name], name) for name in names)
        more = {name for _, _, name in order[:left]}
        ranks |= {name: least + whole[name] + (name in more) for name in names}
    return ranks


def _scores(group: Cuts, rank: int, stats: Stats, alpha: float) -> dict[str, float]:
    """s_i of the layers of one type; 1 for a layer that is alone in it."""
    if len(group) == 1:
        return dict.fromkeys(group, 1.0)
    influence = {}
    for name in group:
        wanted_by = f"allocation 'importance' for layer {name!r}"
        influence[name] = (stats.get(name) or LayerStats()).need("influence", wanted_by)
    low, high = min(influence.values()), max(influence.values())
    scores = {}
    for name, decomposition in group.items():
        beta = 1 + (influence[name] - low) / (high - low) if high > low else 1.0
        loss = shared.root_loss(decomposition, rank, stats.get(name))
        scores[name] = beta**alpha * math.log(math.e + loss) ** (1 - alpha)
    return scores
