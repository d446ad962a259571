"""Zero Sum SVD: drop components over all layers at once, so that the first-order changes of the
loss cancel.

Of each layer only the last component that is left may go, so what stays is always a prefix and
every rank a slice.  The walk starts at full rank and ends when the budget is met (`select`).  With
one queue it is IO-SVD's greedy rule, with other scores the rest of the paper's ablation (`RULES`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from prehab_lib.budget import check_removed
from prehab_lib.decomposition import Decomposition
from prehab_lib.inputs import check_settings
from prehab_lib.rivals.accounting import ACCOUNTINGS, budget_for, check_floor
from prehab_lib.rivals.components import loss_changes, ordered
from prehab_lib.rivals.ranks import shape_of
from prehab_lib.rivals.walk_order import RULES, Step, tail_of, walk
from prehab_lib.stats import LayerStats

__all__ = ["ACCOUNTINGS", "RULES", "Selection", "greedy", "plan", "select", "zero_sum"]

REPLANS = 3  # rounds of the repair


@dataclass(frozen=True)
class Selection:
    """What the walk decided.

    ranks: layer -> rank, None where it stays dense.
    planned: Σ ΔL over all drops of the walk, the balance it steered.  shipped: Σ ΔL over what is
    really dropped; layers that ended above their break-even rank stay dense, and their drops are
    undone.
    removed, budget: numbers taken away, as counted and as asked; less than one drop apart.
    undone: the layers whose drops were undone.  replans: rounds of the repair that were run.
    orders: layer -> its components in the order that `ranks` cuts, where the rule reorders them;
    else empty. walk: with trace, (layer, component, ΔL, running sum) of every drop; a component is
    numbered as it came in.
    """

    ranks: dict[str, int | None]
    planned: float
    shipped: float
    removed: int
    budget: int
    undone: tuple[str, ...] = ()
    replans: int = 0
    orders: dict[str, list[int]] = field(default_factory=dict)
    walk: list[Step] | None = None


def select(
    changes: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, int]],
    removed: float,
    *,
    rule: str = "zero_sum",
    sigma: Mapping[str, Tensor] | None = None,
    floor: float = 0.0,
    accounting: str = "break_even",
    replan: bool = False,
    trace: bool = False,
) -> Selection:
    """Drop one last component after the other, over all layers, until ⌊removed · Σ m n⌋ numbers are
    saved.

    Two queues hold the layers' last components by |ΔL|, one for ΔL ≥ 0 and one for ΔL < 0.  While
    the sum of what was dropped is ≤ 0 the first is preferred, else the second; so the sum stays
    within the largest |ΔL| as long as both have entries.  Of equals goes what has waited longest,
    at the start in the order of names.

    changes: layer -> ΔL (k,), from `components.loss_changes`; layers in which no rank saves
    anything need none. shapes: layer -> (m, n), of all layers that count.  rule: a key of `RULES`.
    sigma: layer -> (k,), for rule "sigma" alone.
    floor: every layer keeps this share of its break-even rank (of min(m, n) under "remap"), and at
    least rank 1. accounting: a key of `ACCOUNTINGS`.  replan: drops of layers that end above their
    break-even rank are undone, but were part of the balance; walk again without such layers until
    there is none, at most REPLANS times.  trace: keep every step.

    Source: Zero Sum SVD (arXiv 2602.02848); the repair is ours.  Cost: about 2 s on one core for
    10⁶ components of 224 layers.
    Raises ValueError for a bad option or `removed`, a budget that the floors do not allow (it says
    the nearest one that they do), or naming a layer whose changes are missing, too few or not
    finite.
    """
    share = check_removed(removed)
    check_options(rule=rule, floor=floor, accounting=accounting)
    terms = {
        name: ACCOUNTINGS[accounting](shape, check_floor(floor)) for name, shape in shapes.items()
    }
    budget = budget_for(terms, share, floor)
    tails = [
        tail_of(name, terms[name], changes, sigma, RULES[rule])
        for name in sorted(shapes)
        if terms[name].most
    ]
    candidates, replans = tails, 0
    while True:
        reached, planned, steps = walk(
            candidates, budget, balanced=RULES[rule].balanced, trace=trace
        )
        undone = [
            name for name, rank in reached.items() if terms[name].most < rank < terms[name].full
        ]
        if not (replan and undone and replans < REPLANS):
            break
        # What the others saved met the budget without these, so it can be met without them.
        candidates = [tail for tail in candidates if tail.name not in undone]
        replans += 1
    ranks = {name: rank for name, rank in reached.items() if rank <= terms[name].most}
    return Selection(
        ranks={name: ranks.get(name) for name in shapes},
        planned=planned,
        shipped=math.fsum(
            change
            for tail in tails
            if tail.name in ranks
            for change in tail.changes[ranks[tail.name] :]
        ),
        removed=sum(terms[name].saved(rank) for name, rank in ranks.items()),
        budget=budget,
        undone=tuple(undone),
        replans=replans,
        orders={tail.name: tail.order for tail in tails} if RULES[rule].reorder else {},
        walk=steps,
    )


def plan(
    decompositions: Mapping[str, Decomposition],
    stats: Mapping[str, LayerStats] | None,
    removed: float,
    *,
    rule: str = "zero_sum",
    floor: float = 0.0,
    accounting: str = "break_even",
    replan: bool = False,
    trace: bool = False,
) -> tuple[dict[str, Decomposition], Selection]:
    """`select` on the loss changes of these decompositions, and decompositions whose first
    components are what it keeps.

    They are the given ones, but for a rule that reorders: then left · right is the same matrix,
    `truncate(rank)` keeps what the rule keeps, and `sigma` no longer descends
    (`components.ordered`).  stats: with `grad`.  Options as for `select`.
    Raises ValueError as `components.loss_changes` and `select` do, the latter before anything is
    factorised.
    """
    share = check_removed(removed)
    check_options(rule=rule, floor=floor, accounting=accounting)
    shapes = {name: shape_of(decomposition) for name, decomposition in decompositions.items()}
    terms = {
        name: ACCOUNTINGS[accounting](shape, check_floor(floor)) for name, shape in shapes.items()
    }
    budget_for(terms, share, floor)
    useful = {name: found for name, found in decompositions.items() if terms[name].most}
    changes = loss_changes(useful, stats)
    sigma = {name: found.sigma for name, found in useful.items()} if rule == "sigma" else None
    options = dict(floor=floor, accounting=accounting, replan=replan, trace=trace)
    selection = select(changes, shapes, removed, rule=rule, sigma=sigma, **options)
    cut = {name: ordered(decompositions[name], order) for name, order in selection.orders.items()}
    return dict(decompositions) | cut, selection


def zero_sum(
    decompositions: Mapping[str, Decomposition],
    removed: float,
    *,
    model=None,
    stats: Mapping[str, LayerStats] | None = None,
    task_loss=None,
    batches=None,
    validation=None,
    rule: str = "zero_sum",
    floor: float = 0.0,
    accounting: str = "break_even",
    replan: bool = False,
) -> dict[str, int | None]:
    """The ranks at which the first-order changes of the loss cancel: `select` on
    `components.loss_changes`.

    stats: with `grad`.  The budget is one over all layers, those that stay dense included; where it
    cannot be met that is an error, while allocations that give each layer its own share fall back
    to rank 1.  A rule that reorders components needs decompositions in that order: those of `plan`,
    given to `surgery.compress`.

    accounting "remap" counts numbers as `quantised.quantise(layout="remap")` stores them; until
    then a report counts plain factors, which may be more than W.

    Source: Zero Sum SVD (arXiv 2602.02848); its scripts take floor = 0 for 20 and 40 % removed, 0.3
    for 60 %. Raises ValueError as `plan` does.
    """
    options = dict(rule=rule, floor=floor, accounting=accounting, replan=replan)
    _, selection = plan(decompositions, stats, removed, **options)
    if any(order != sorted(order) for order in selection.orders.values()):
        raise ValueError(
            f"rule = {rule!r} drops components in another order than these decompositions have: "
            "pass decompositions=zero_sum.plan(...)[0] to compress"
        )
    return selection.ranks


def greedy(
    decompositions: Mapping[str, Decomposition], removed: float, **given
) -> dict[str, int | None]:
    """As `zero_sum`, with one queue: the smallest |ΔL| of all last components goes next, whatever
    its sign.

    Source: IO-SVD (arXiv 2605.15626), there on its own ruler; an arm of Zero Sum SVD's ablation.
    """
    return zero_sum(decompositions, removed, rule="magnitude", **given)


def check_options(
    rule: str = "zero_sum", floor: float = 0.0, accounting: str = "break_even", **_
) -> None:
    """Raises ValueError for an unknown rule or accounting, or a floor outside 0 … 1: before hours
    of work, not after.
    """
    for option, value, known in (("rule", rule, RULES), ("accounting", accounting, ACCOUNTINGS)):
        if value not in known:
            raise ValueError(f"{option} = {value!r} is not known: choose one of {', '.join(known)}")
    check_floor(floor)


def check_arguments(task_loss=None, batches=None, validation=None, **options) -> None:
    check_settings("options", options, ("rule", "floor", "accounting", "replan"))
    check_options(**options)


def check_greedy(task_loss=None, batches=None, validation=None, **options) -> None:
    check_settings("options", options, ("floor", "accounting", "replan"))
    check_options(**options)
