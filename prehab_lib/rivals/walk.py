"""The walk of a global selection: which layer loses its last component next?

The rules are the ablation of Zero Sum SVD (arXiv 2602.02848); "magnitude" is IO-SVD's as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

import torch

from prehab_lib.rivals.ranks import Cost

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
class Candidate:
    """A layer as the walk sees it: ΔL and score of its components, which are cut from the end, and
    in `order` their numbers as they came in.
    """

    name: str
    cost: Cost
    order: list[int]
    changes: list[float]
    scores: list[float]


def candidate(name: str, cost: Cost, changes: Mapping, sigma: Mapping | None, rule: Rule):
    """The `Candidate` of a layer.  Raises ValueError naming it where its changes are missing, too
    few, or not finite.
    """
    if name not in changes:
        raise ValueError(f"changes lack layer {name!r}: take them from components.loss_changes")
    change = torch.as_tensor(changes[name], dtype=torch.float64)
    score = change if rule.by == "value" else change.abs()
    if rule.by == "sigma":
        if sigma is None:
            raise ValueError("rule 'sigma' looks at singular values: pass sigma={layer: (k,)}")
        if name not in sigma:
            raise ValueError(f"sigma lacks layer {name!r}: take it from its decomposition")
        score = torch.as_tensor(sigma[name])
    for values in (change, score):
        if values.shape != (cost.full,):
            counted = f"layer {name!r} has {cost.full} components"
            raise ValueError(f"{counted}, and scores of shape {tuple(values.shape)}")
        if not torch.isfinite(values).all():
            raise ValueError(f"layer {name!r}: the score of a component is NaN or infinite")
    order = torch.arange(cost.full)
    if rule.reorder:  # stable: of equals the later goes first, as it would without
        order = score.argsort(descending=True, stable=True).cpu()
    return Candidate(name, cost, order.tolist(), change[order].tolist(), score[order].tolist())


def walk(
    layers: list[Candidate], budget: int, *, balanced: bool, trace: bool = False
) -> tuple[dict[str, int], float, list[Step] | None]:
    """Drop last components until `budget` numbers are saved: (layer -> rank, Σ ΔL of the drops, the
    steps with trace).

    Of equal scores goes the one that has waited longest, at the start in the order of `layers`.  A
    layer has one entry in the queues at a time, so K drops of M layers take K log M steps.  The
    budget must be within what the floors allow.
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
