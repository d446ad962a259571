"""Exercises of notebook 06, ablations: a lead after LoRA, seeds that it takes, λ in other units."""

from math import ceil
from statistics import pstdev, stdev


def spread(first, second, deviation=stdev):
    return deviation(a - b for a, b in zip(first, second, strict=True))


def seeds_needed(spread, effect):
    return ceil((2 * spread / effect) ** 2)


def divided_by_n(first, second, effect):
    return seeds_needed(spread(first, second, pstdev), effect)
