"""Exercises of notebook 06, ablations: a gain taken apart, paired differences, units of λ."""

import math
from statistics import mean, stdev

from prehab_lib.exercises import Exercise, slips

# 6.1: share of training


def _share(nothing, control, prepared):
    return (control - nothing) / (prepared - nothing)


# 6.2: paired t


def _paired_t(first, second):
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean(differences) / (stdev(differences) / math.sqrt(len(differences)))


def _unpaired_t(first, second):
    return (mean(first) - mean(second)) / math.sqrt(
        (stdev(first) ** 2 + stdev(second) ** 2) / len(first)
    )


def _without_root(first, second):
    return _paired_t(first, second) / math.sqrt(len(first))


def _with_n(first, second):
    n = len(first)
    return _paired_t(first, second) * math.sqrt(n / (n - 1))


# 6.3: λ in other units


def _same_lambda(lam, layers, tokens):
    return lam / (layers * math.sqrt(tokens))


EXERCISES = {
    "6.1": Exercise(
        cases=[(50.0, 56.0, 58.0), (20.0, 18.0, 24.0), (0.0, 1.0, 1.5)],
        withheld=[(10.0, 30.0, 20.0), (40.0, 44.0, 50.0)],
        solution=_share,
        slips=slips(
            lambda nothing, control, prepared: (prepared - control) / (prepared - nothing),
            "that is the regulariser's share: training alone goes from nothing to the control",
            lambda nothing, control, prepared: control / prepared,
            "scores are not gains: measure both from what doing nothing scores",
            lambda nothing, control, prepared: (control - nothing) / (prepared - control),
            "a share of the whole gain: divide by prepared − nothing",
        ),
    ),
    "6.2": Exercise(
        cases=[([3.0, 5.0, 9.0], [2.0, 3.0, 6.0]), ([1.0, 4.0, 2.0, 8.0], [2.0, 3.0, 2.5, 6.0])],
        withheld=[([5.0, 7.0], [4.0, 4.0]), ([1.0, 2.0, 4.0, 8.0, 3.0], [0.0, 2.5, 3.0, 6.0, 1.0])],
        solution=_paired_t,
        slips=slips(
            _unpaired_t,
            "seeds are paired: take the difference of each seed first, then its spread",
            _without_root,
            "that is the spread of one seed's difference: the mean of n has 1/√n of it",
            _with_n,
            "divide the squares by n − 1, not by n: the mean was estimated from the same numbers",
        ),
    ),
    "6.3": Exercise(
        cases=[(5.0, 49, 10000), (0.1, 9, 400), (1.0, 4, 2)],
        withheld=[(2.0, 12, 2500), (0.7, 1, 1)],
        solution=_same_lambda,
        slips=slips(
            lambda lam, layers, tokens: lam / layers,
            "the Gram's scale counts too: dividing G by N divides L, and the nuclear norm, by √N",
            lambda lam, layers, tokens: lam / (layers * tokens),
            "the Gram is divided by N, but its root L, which the norm sees, by √N",
            lambda lam, layers, tokens: lam * layers * math.sqrt(tokens),
            "the other way round: your sum and your Gram are larger, so your λ is smaller",
        ),
    ),
}
