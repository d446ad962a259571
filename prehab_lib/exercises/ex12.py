"""Exercises of notebook 12, real models: an error over windows, a choice by size."""

import math
from statistics import stdev


def gaps(control, arm):
    return [c - a for c, a in zip(control, arm, strict=True)]


def error(values):
    return stdev(values) / len(values) ** 0.5


def best(pipelines, size, key=lambda row: row[2]):
    return min((row for row in pipelines if row[1] <= size), key=key)[0]


def lost(pair):
    return math.log(pair[1] / pair[0])
