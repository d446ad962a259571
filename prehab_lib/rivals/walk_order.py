"""The walk of a global selection: which layer loses its last component next, until enough is saved."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

import torch
from torch import Tensor

from prehab_lib.rivals.accounting import Terms

Step = tuple[str, int, float, float]  # (layer, component as it came in, ΔL, sum of ΔL so far)


@dataclass(frozen=True)
class Rule:
    """score: (ΔL (k,), sigma (k,)) -> (k,), the lowest goes first.

    balanced: two queues, one for ΔL ≥ 0 and one for ΔL < 0; the next drop is the one that pulls the
    sum towards zero. reorder: look at all components, not only at tails: each layer's are sorted by
    score first, the lowest last.
    """

    score: Callable[[Tensor, Tensor | None], Tensor]
    balanced: bool = False
    reorder: bool = False


def _size(changes: Tensor, sigma: Tensor | None) -> Tensor:
    return changes.abs()


def _sigma(changes: Tensor, sigma: Tensor | None) -> Tensor:
    if sigma is None:
        raise ValueError("rule 'sigma' looks at singular values: pass sigma={layer: (k,)}")
    return torch.as_tensor(sigma)


def _signed(changes: Tensor, sigma: Tensor | None) -> Tensor:
    return changes


# The ablation of Zero Sum SVD (arXiv 2602.02848); "magnitude" is also the rule of IO-SVD (arXiv
# 2605.15626).
RULES: dict[str, Rule] = {
    "zero_sum": Rule(_size, balanced=True),
    "magnitude": Rule(_size),
    "sigma": Rule(_sigma),
    "most_negative": Rule(_signed, reorder=True),
    "magnitude_all": Rule(_size, reorder=True),
}


@dataclass(frozen=True)
class Tail:
    """A layer as the walk sees it: ΔL and score of its components as plain numbers, cut from the
    end.

    order: the components' numbers as they came in.
    """

    name: str
    terms: Terms
    order: list[int]
    changes: list[float]
    scores: list[float]


def tail_of(name: str, terms: Terms, changes: Mapping, sigma: Mapping | None, rule: Rule) -> Tail:
    """The layer under a rule.  Raises ValueError naming it where changes are missing, too few, or
    not finite.
    """
    if name not in changes:
        raise ValueError(f"changes lack layer {name!r}: take them from components.loss_changes")
    if sigma is not None and name not in sigma:
        raise ValueError(f"sigma lacks layer {name!r}: take it from its decomposition")
    change = torch.as_tensor(changes[name], dtype=torch.float64)
    score = rule.score(change, None if sigma is None else sigma[name])
    for found in (change, score):
        if found.shape != (terms.full,):
            raise ValueError(
                f"layer {name!r} has {terms.full} components, and scores of shape {tuple(found.shape)}"
            )
        if not torch.isfinite(found).all():
            raise ValueError(f"layer {name!r}: the score of a component is NaN or infinite")
    change, score, order = change.tolist(), score.tolist(), list(range(terms.full))
    if rule.reorder:  # stable: of equals the later goes first, as it would without
        order.sort(key=lambda i: -score[i])
        change, score = [change[i] for i in order], [score[i] for i in order]
    return Tail(name, terms, order, change, score)


def walk(
    tails: list[Tail], budget: int, *, balanced: bool, trace: bool = False
) -> tuple[dict[str, int], float, list[Step] | None]:
    """Drop last components until `budget` numbers are saved: (layer -> rank, Σ ΔL of the drops, the
    steps with trace).

    Of equal scores goes the one that has waited longest, at the start in the order of `tails`.  A
    layer has one entry in the queues at a time, so K drops of M layers take K log M steps.  The
    budget must be within what the floors allow.
    """
    ranks = [tail.terms.full for tail in tails]
    queues: tuple[list, list] = [], []  # min-heaps of (score, waiting since, number of the layer)
    steps: list[Step] | None = [] if trace else None
    balance, saved, now = 0.0, 0, 0

    def push(number: int) -> None:
        tail, last = tails[number], ranks[number] - 1
        if last >= tail.terms.least:
            heappush(queues[balanced and tail.changes[last] < 0], (tail.scores[last], now, number))

    for number in range(len(tails)):
        push(number)
        now += 1
    while saved < budget:
        _, _, number = heappop(queues[balance > 0] or queues[balance <= 0])
        tail, last = tails[number], ranks[number] - 1
        ranks[number] = last
        balance += tail.changes[last]
        saved += tail.terms.saved(last) - tail.terms.saved(last + 1)
        if trace:
            steps.append((tail.name, tail.order[last], tail.changes[last], balance))
        push(number)
        now += 1
    return {tail.name: rank for tail, rank in zip(tails, ranks, strict=True)}, balance, steps
