"""Zero Sum SVD: drop components over all layers at once, so that the first-order changes of the
loss cancel.

Of each layer only the last component that is left may go, so what stays is always a prefix and
every rank a slice.  The walk starts at full rank and ends when the budget is met (`select`).  With
one queue it is IO-SVD's greedy rule, with other scores the rest of the paper's ablation (`RULES`).

Source: Zero Sum SVD (arXiv 2602.02848); its scripts take floor = 0 for 20 and 40 % removed, 0.3 for
60 %.  The repair, replan, is ours: drops of layers that end above break-even are undone, but were
part of the balance.  Greedy: IO-SVD (arXiv 2605.15626), there on its own ruler; an arm of Zero Sum
SVD's ablation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

from prehab_lib.budget import check_removed
from prehab_lib.inputs import check_choice, check_settings
from prehab_lib.rivals.components import loss_changes, ordered
from prehab_lib.rivals.ranks import Cost, Cuts, Ranks, Shape, Stats, costs_of
from prehab_lib.rivals.walk import RULES, Step, candidate, walk

REPLANS = 3  # rounds of the repair


@dataclass(frozen=True)
class Selection:
    """What the walk decided.

    planned: Σ ΔL over all drops of the walk.  shipped: Σ ΔL over what is really dropped; layers
    that ended above break-even stay dense, and their drops are undone.  removed, budget: numbers
    taken away, as counted and as asked, less than one drop apart.  undone: the layers whose drops
    were undone.  replans: rounds of the repair.  orders: layer -> its components in the order that
    `ranks` cuts, where the rule reorders them.  walk: with trace, (layer, component as it came in,
    ΔL, running sum) of every drop.
    """

    ranks: Ranks
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
    shapes: Mapping[str, Shape],
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
    saved: while the sum of the dropped ΔL is ≤ 0 the least that rises, else the least that falls.

    changes: layer -> ΔL (k,), from `components.loss_changes`; none for layers no rank shrinks.
    shapes: layer -> (m, n), of all layers that count.  rule: a key of `RULES`.  sigma: layer ->
    (k,), for rule "sigma".  floor: every layer keeps this share of its largest useful rank, and at
    least rank 1.  accounting: a key of `ranks.ACCOUNTINGS`.  replan: walk again without layers
    whose drops are undone until there is none, at most REPLANS times.  trace: keep every step.
    Raises ValueError for a bad option, a budget beyond the floors (with the nearest), or a layer
    whose changes are bad.
    """
    costs, budget = _counted(shapes, removed, rule, floor, accounting)
    useful = [name for name in sorted(shapes) if costs[name].most]
    layers = [candidate(name, costs[name], changes, sigma, RULES[rule]) for name in useful]
    walking, replans = layers, 0
    while True:
        reached, planned, steps = walk(walking, budget, balanced=RULES[rule].balanced, trace=trace)
        ranks = {name: rank for name, rank in reached.items() if rank <= costs[name].most}
        undone = [
            name for name in reached if name not in ranks and reached[name] < costs[name].full
        ]
        if not (replan and undone and replans < REPLANS):
            break
        # What the others saved met the budget without these, so it can be met without them.
        walking = [layer for layer in walking if layer.name not in undone]
        replans += 1
    dropped: list[float] = []
    for layer in layers:
        if layer.name in ranks:
            dropped += layer.changes[ranks[layer.name] :]
    return Selection(
        ranks={name: ranks.get(name) for name in shapes},
        planned=planned,
        shipped=math.fsum(dropped),
        removed=sum(costs[name].saved(rank) for name, rank in ranks.items()),
        budget=budget,
        undone=tuple(undone),
        replans=replans,
        orders={layer.name: layer.order for layer in layers} if RULES[rule].reorder else {},
        walk=steps,
    )


def plan(
    decompositions: Cuts, stats: Stats | None, removed: float, *, rule: str = "zero_sum", **options
) -> tuple[Cuts, Selection]:
    """`select` on the loss changes of these decompositions, and decompositions whose first
    components are what it keeps.

    They are the given ones, but for a rule that reorders (`components.ordered`): then left · right
    is the same matrix, and `truncate(rank)` keeps what the rule keeps.  stats: with `grad`.
    options: floor, accounting, replan and trace.  Raises ValueError as `components.loss_changes`
    and `select` do, the latter before anything is factorised.
    """
    shapes = {name: tuple(decomposition.shape) for name, decomposition in decompositions.items()}
    costs, _ = _counted(shapes, removed, rule, **options)
    useful = {name: cut for name, cut in decompositions.items() if costs[name].most}
    changes = loss_changes(useful, stats)
    sigma = {name: cut.sigma for name, cut in useful.items()} if rule == "sigma" else None
    selection = select(changes, shapes, removed, rule=rule, sigma=sigma, **options)
    cut = {name: ordered(decompositions[name], order) for name, order in selection.orders.items()}
    return dict(decompositions) | cut, selection


def zero_sum(
    decompositions: Cuts,
    removed: float,
    *,
    model=None,
    stats: Stats | None = None,
    task_loss=None,
    batches=None,
    validation=None,
    **options,
) -> Ranks:
    """The ranks at which the first-order changes of the loss cancel: `select` on
    `components.loss_changes`.

    stats: with `grad`.  options: rule, floor, accounting, replan.  The budget is one over all
    layers, dense ones included; one that cannot be met is an error.  A rule that reorders
    components needs decompositions in that order: those of `plan`, given to `surgery.compress`.
    accounting "remap" counts numbers as `quantised.quantise(layout="remap")` stores them; until
    then a report counts plain factors, which may be more than W.  Raises ValueError as `plan` does.
    """
    check_arguments(**options)
    _, selection = plan(decompositions, stats, removed, **options)
    if any(order != sorted(order) for order in selection.orders.values()):
        other = f"rule = {options['rule']!r} drops components in another order than these have"
        raise ValueError(f"{other}: pass decompositions=zero_sum.plan(...)[0] to compress")
    return selection.ranks


def greedy(decompositions: Cuts, removed: float, **given) -> Ranks:
    """As `zero_sum`, with one queue: the smallest |ΔL| of all last components goes next."""
    return zero_sum(decompositions, removed, rule="magnitude", **given)


def check_arguments(
    task_loss=None, batches=None, validation=None, rule: str = "zero_sum", **options
) -> None:
    """Raises ValueError for an option that is unknown or bad: before hours of work, not after."""
    check_settings("options", options, ("rule", "floor", "accounting", "replan"))
    check_choice("rule", rule, RULES)
    costs_of({}, options.get("accounting", "break_even"), options.get("floor", 0.0))


def check_greedy(task_loss=None, batches=None, validation=None, **options) -> None:
    """As `check_arguments`, for `greedy`, whose rule is fixed."""
    check_settings("options", options, ("floor", "accounting", "replan"))
    check_arguments(**options)


def _counted(
    shapes: Mapping[str, Shape], removed: float, rule: str, floor=0.0, accounting="break_even", **_
) -> tuple[dict[str, Cost], int]:
    """What ranks cost, and the numbers to take away: ⌊removed · Σ m n⌋ over all layers.  Raises
    ValueError for a bad option, or naming the nearest `removed` that the floors allow.
    """
    check_choice("rule", rule, RULES)
    costs = costs_of(shapes, accounting, floor)
    share = check_removed(removed)
    total = sum(cost.dense for cost in costs.values())
    reachable = sum(cost.saved(cost.least) for cost in costs.values())
    budget = math.floor(share * total)
    if budget <= reachable:
        return costs, budget
    nearest = math.floor(Fraction(reachable, total) * 10**4) / 10**4
    way_out = f"the nearest reachable is removed = {nearest}"
    if not nearest:
        way_out = "none of their ranks saves parameters"
    raise ValueError(
        f"removed = {float(removed)} cannot be met: with every layer at its floor (floor = "
        f"{floor}, at least rank 1) {reachable} of these layers' {total} weights go; {way_out}"
    )
