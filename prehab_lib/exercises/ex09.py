"""Exercises of notebooks 09 and 09b: lookahead, halving, places of S, nested sizes."""

import math
from itertools import accumulate, pairwise


def chosen(lam, delta, losses, worst=math.inf, grow=math.exp, first=0):
    """losses: of the arms log λ − δ, log λ, log λ + δ; first: which of them wins a tie."""
    real = {
        arm: worst if math.isnan(loss) else loss
        for arm, loss in zip((-1, 0, 1), losses, strict=True)
    }
    order = sorted(real, key=lambda arm: arm != first)
    return lam * grow(delta * min(order, key=real.get))


def trained(steps, arms, parts):
    return round(
        sum(k * steps * (b - a) for k, (a, b) in zip(arms, pairwise([0, *parts]), strict=True))
    )


def fewest(m, n, starts=1, each=4, column=2, round_up=math.ceil):
    """Entries from which the mask is smaller: ⌈m n / 8⌉ < column s + each (m + starts)."""
    return max(0, (round_up(m * n / 8) - each * (m + starts)) // column + 1)


def tails(weights):
    return list(accumulate(weights[::-1]))[::-1]


def mask(sums, pick=min):
    return [[pick(one, other) for other in sums] for one in sums]
