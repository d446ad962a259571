"""Exercises of notebook 06, ablations: a lead after LoRA, seeds it takes, a tail and its share."""

from math import ceil
from statistics import stdev


def spread(first, second):
    return stdev(a - b for a, b in zip(first, second, strict=True))


def seeds_needed(spread, effect):
    return ceil((2 * spread / effect) ** 2)


def lowered(control, arm, rank, power=2):
    ends, wholes = ([sum(s**power for s in some[k:]) for some in (control, arm)] for k in (rank, 0))
    share = ends[1] / wholes[1] * wholes[0] / ends[0]
    return [100 * (1 - share), 100 * (1 - ends[1] / ends[0])]
