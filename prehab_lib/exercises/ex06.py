"""Exercises of notebook 06, ablations: a lead after LoRA, seeds that it takes, λ in other units."""

from math import ceil
from statistics import stdev


def spread(first, second):
    return stdev(a - b for a, b in zip(first, second, strict=True))


def seeds_needed(spread, effect):
    return ceil((2 * spread / effect) ** 2)
