"""Exercises of notebook 06, ablations: a gain taken apart, paired differences, λ in other units."""

import math
from statistics import mean, stdev

from prehab_lib.exercises import load


def _share_of_training(nothing, control, prepared):
    return (control - nothing) / (prepared - nothing)


def _paired_t(first, second):
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean(differences) / (stdev(differences) / math.sqrt(len(differences)))


ANSWERS = {
    "6.1": dict(
        solution=_share_of_training,
        share_of_the_regulariser=lambda *scores: 1 - _share_of_training(*scores),
        ratio_of_scores=lambda nothing, control, prepared: control / prepared,
        over_the_rest=lambda nothing, control, prepared: (control - nothing) / (prepared - control),
    ),
    "6.2": dict(
        solution=_paired_t,
        unpaired=lambda a, b: (
            (mean(a) - mean(b)) * math.sqrt(len(a)) / math.hypot(stdev(a), stdev(b))
        ),
        spread_of_one_seed=lambda first, second: _paired_t(first, second) / math.sqrt(len(first)),
        divided_by_n=lambda a, b: _paired_t(a, b) * math.sqrt(len(a) / (len(a) - 1)),
    ),
    "6.3": dict(
        solution=lambda lam, layers, tokens: lam / (layers * math.sqrt(tokens)),
        without_tokens=lambda lam, layers, tokens: lam / layers,
        tokens_without_root=lambda lam, layers, tokens: lam / (layers * tokens),
        other_way_round=lambda lam, layers, tokens: lam * layers * math.sqrt(tokens),
    ),
}
EXERCISES = load("ex06.yaml", ANSWERS)
