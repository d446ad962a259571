"""Exercises of notebook 06, ablations: a gain taken apart, paired differences, λ in other units."""

import math
from statistics import mean, stdev


def share_of_training(nothing, control, prepared):
    return (control - nothing) / (prepared - nothing)


def paired_t(first, second):
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean(differences) / (stdev(differences) / math.sqrt(len(differences)))
