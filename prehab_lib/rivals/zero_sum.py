"""Zero Sum SVD: drop components over all layers so that first-order changes of the loss cancel.

Of each layer only the last component that is left may go, so what stays is always a prefix and
every rank a slice.  The walk starts at full rank and ends when the budget is met (`select`).  The
other `RULES` are the paper's ablation.

Source: Zero Sum SVD (arXiv 2602.02848).  The repair, replan, is ours: drops of layers that end
above break-even are undone, but were part of the balance.  Greedy, with one queue: IO-SVD (arXiv
2605.15626), there on its own ruler.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappop, heappush

import torch
from torch import Tensor

from prehab_lib.budget import check_removed
from prehab_lib.inputs import check_choice
from prehab_lib.rivals import shared
from prehab_lib.rivals.shared import Cost, Cuts, Ranks, Shape, Stats

REPLANS = 3  # rounds of the repair
Step = tuple[str, int, float, float]  # (layer, component as it came in, ΔL, sum of ΔL so far)


@dataclass(frozen=True)
class Rule:
    """by: what scores a component, "size" |ΔL|, "value" ΔL or "sigma" σ; the lowest goes first.
    balanced: two queues, one for ΔL ≥ 0 and one for ΔL < 0; the next drop is the one that pulls the
    sum towards zero.  reorder: each layer's components are sorted by score first, the lowest last,
    so that the rule looks at all components and not only at tails.
    """

    by: str
    balanced: bool = False
    reorder: bool = False


RULES: dict[str, Rule] = {
    "zero_sum": Rule("size", balanced=True),
    "magnitude": Rule("size"),
    "sigma": Rule("sigma"),
    "most_negative": Rule("value", reorder=True),
    "magnitude_all": Rule("size", reorder=True),
}


@dataclass(frozen=True)
class Selection:
    """What the walk decided.

    planned: Σ ΔL over all drops of the walk.  shipped: the same without layers `undone`, which
    ended above break-even and stay dense.  removed, budget: numbers taken away, as counted and
    asked, less than one drop apart.  replans: rounds of the repair.  orders: layer -> its
    components in the order that `ranks` cuts, where the rule reorders them.
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
    floor: float | str = 0.0,
    accounting: str = "break_even",
    replan: bool = False,
    trace: bool = False,
) -> Selection:
    """Drop one last component after the other, over all layers, until ⌊removed · Σ m n⌋ numbers are
    saved: while the sum of the dropped ΔL is ≤ 0 the least that rises, else the least that falls.

    changes: layer -> ΔL (k,), from `loss_changes`; none for layers no rank shrinks.  shapes: layer
    -> (m, n), of all layers that count.  rule: a key of `RULES`.  sigma: layer -> (k,), for rule
    "sigma".  floor: every layer keeps this share of its largest useful rank, at least rank 1.
    accounting: a key of `ACCOUNTINGS`.  replan: walk again without layers whose drops are undone
    until there is none, at most REPLANS times.  trace: keep every step.  Raises ValueError for a
    bad option, a budget beyond the floors (with the nearest), or bad changes of a layer.
    """
    costs, budget = _counted(shapes, removed, rule, floor, accounting)
    useful = [name for name in sorted(shapes) if costs[name].most]
    layers = [candidate(name, costs[name], changes, sigma, RULES[rule]) for name in useful]
    walking, replans = layers, 0
    while True:
        reached, planned, steps = walk(walking, budget, balanced=RULES[rule].balanced, trace=trace)
        ranks = {name: rank for name, rank in reached.items() if rank <= costs[name].most}
        undone = [name for name in reached if costs[name].most < reached[name] < costs[name].full]
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
    """Decompositions whose first components are what `select` keeps, and its `Selection`.

    They are the given ones, but for a rule that reorders (`ordered`): then left · right is the same
    matrix, and `truncate(rank)` keeps what the rule keeps.  stats: with `grad`.  options: floor,
    accounting, replan and trace.  Raises ValueError as `loss_changes` and `select` do, the latter
    before anything is factorised.
    """
    shapes = {name: tuple(decomposition.shape) for name, decomposition in decompositions.items()}
    costs, _ = _counted(shapes, removed, rule, **options)
    useful = {name: cut for name, cut in decompositions.items() if costs[name].most}
    changes = shared.loss_changes(useful, stats)
    sigma = {name: cut.sigma for name, cut in useful.items()} if rule == "sigma" else None
    selection = select(changes, shapes, removed, rule=rule, sigma=sigma, **options)
    orders = selection.orders
    cut = {name: shared.ordered(decompositions[name], orders[name]) for name in orders}
    return dict(decompositions) | cut, selection


def zero_sum(decompositions: Cuts, removed: float, *, stats=None, **given) -> Ranks:
    """The ranks at which the first-order changes of the loss cancel: `select` on `loss_changes`.

    stats: with `grad`.  Options: rule, floor, accounting, replan.  The budget is one over all
    layers, dense ones included.  A rule that reorders needs the decompositions of `plan`, given to
    `surgery.compress`.  accounting "remap" counts numbers as `quantise` stores them; until then a
    report counts plain factors, which may be more than W.  Raises ValueError as `plan` does.
    """
    options = {name: given[name] for name in given if name not in ("model", *shared.DATA)}
    _, selection = plan(decompositions, stats, removed, **options)
    if any(order != sorted(order) for order in selection.orders.values()):
        other = f"rule = {options['rule']!r} drops components in another order than these have"
        raise ValueError(f"{other}: pass decompositions=zero_sum.plan(...)[0] to compress")
    return selection.ranks


def greedy(decompositions: Cuts, removed: float, **given) -> Ranks:
    """As `zero_sum`, with one queue: the smallest |ΔL| of all last components goes next."""
    return zero_sum(decompositions, removed, rule="magnitude", **given)


def check_arguments(rule="zero_sum", floor=0.0, accounting="break_even", replan=False) -> None:
    """Raises ValueError for a bad option: before hours of work, not after."""
    check_choice("rule", rule, RULES)
    check_choice("replan", replan, (True, False))
    shared.costs_of({}, accounting, 0.0 if floor == "scripts" else floor)


def check_greedy(floor=0.0, accounting="break_even", replan=False) -> None:
    """As `check_arguments`, for `greedy`, whose rule is fixed."""
    check_arguments("magnitude", floor, accounting, replan)


def floors_at(floor: float | str, removed: float) -> list[float]:
    """Floors to try until one can be met.  "scripts": the authors' 0 at 20 and 40 % removed and 0.3
    at 60 %; ours: 0 below 60 %, and half of the share that is kept where 0.3 is out of reach.
    """
    if floor != "scripts":
        return [floor]
    kept = 1 - check_removed(removed)
    return [0.3, float(kept / 2)] if kept <= Fraction(2, 5) else [0.0]


def _counted(
    shapes: Mapping[str, Shape], removed: float, rule: str, floor=0.0, accounting="break_even", **_
) -> tuple[dict[str, Cost], int]:
    """What ranks cost, and the numbers to take away; raises the ValueErrors of `select` on both."""
    check_choice("rule", rule, RULES)
    total = sum(math.prod(shape) for shape in shapes.values())
    budget = math.floor(check_removed(removed) * total)
    for share in floors_at(floor, removed):
        costs = shared.costs_of(shapes, accounting, share)
        reachable = sum(cost.saved(cost.least) for cost in costs.values())
        if budget <= reachable:
            return costs, budget
    nearest = math.floor(Fraction(reachable, total) * 10**4) / 10**4
    way_out = f"the nearest reachable is removed = {nearest}"
    if not nearest:
        way_out = "none of their ranks saves parameters"
    raise ValueError(
        f"removed = {float(removed)} cannot be met: with every layer at its floor (floor = "
        f"{share}, at least rank 1) {reachable} of these layers' {total} weights go; {way_out}"
    )


@dataclass(frozen=True)
class Candidate:
    """A layer in the walk: ΔL and score of its components, `order`, which are cut from the end."""

    name: str
    cost: Cost
    order: list[int]
    changes: list[float]
    scores: list[float]


def candidate(name: str, cost: Cost, changes: Mapping, sigma: Mapping | None, rule: Rule):
    """The `Candidate` of a layer.  Raises ValueError where changes are missing or not finite."""
    if name not in changes:
        raise ValueError(f"changes lack layer {name!r}: take them from shared.loss_changes")
    change = torch.as_tensor(changes[name], dtype=torch.float64)
    score = change if rule.by == "value" else change.abs()
    if rule.by == "sigma":
        score = torch.as_tensor(sigma[name]).to(change)
    if not torch.isfinite(change + score).all():
        raise ValueError(f"layer {name!r}: the score of a component is NaN or infinite")
    order = torch.arange(cost.full)
    if rule.reorder:  # stable: of equals the later goes first, as it would without
        order = score.argsort(descending=True, stable=True).cpu()
    return Candidate(name, cost, order.tolist(), change[order].tolist(), score[order].tolist())


def walk(
    layers: list[Candidate], budget: int, *, balanced: bool, trace: bool = False
) -> tuple[dict[str, int], float, list[Step] | None]:
    """Drop last components until `budget` numbers are saved: (layer -> rank, Σ ΔL, the steps).

    Of equal scores goes the one that has waited longest, at the start in the order of `layers`.  A
    layer has one entry in the queues at a time, so K drops of M layers take K log M steps.
    """
    ranks = [layer.cost.full for layer in layers]
    # Heaps of (score, since when it waits, number of the layer); only balanced rules have falls.
    rises: list[tuple[float, int, int]] = []
    falls: list[tuple[float, int, int]] = []
    steps: list[Step] | None = [] if trace else None
    balance, saved = 0.0, 0

    def queue(number: int, now: int) -> None:
        """The layer's last component waits for its turn, where the layer may lose it."""
        layer, last = layers[number], ranks[number] - 1
        if last >= layer.cost.least:
            heap = falls if balanced and layer.changes[last] < 0 else rises
            heappush(heap, (layer.scores[last], now, number))

    for number in range(len(layers)):
        queue(number, now=number)
    now = len(layers)
    while saved < budget:
        # A sum above zero asks for a fall, any other for a rise; an empty heap leaves no choice.
        wanted, other = (falls, rises) if balance > 0 else (rises, falls)
        _, _, number = heappop(wanted if wanted else other)
        layer, last = layers[number], ranks[number] - 1
        ranks[number] = last
        balance += layer.changes[last]
        saved += layer.cost.saved(last) - layer.cost.saved(last + 1)
        if steps is not None:
            steps.append((layer.name, layer.order[last], layer.changes[last], balance))
        queue(number, now)
        now += 1
    return {layer.name: rank for layer, rank in zip(layers, ranks, strict=True)}, balance, steps
