"""Exercises of notebook 10, the audit: a printed change, an average, a count of pairs, a memory
label.
"""

import math
from statistics import fmean

from prehab_lib.exercises import Exercise, slips

# 10.1: the change printed beside a value


def _change(value, base):
    return round(100 * (value / base - 1), 1)


def _cut_off(value, base):
    return math.trunc(1000 * (value / base - 1)) / 10


# 10.2: the last column of Table III

_TASKS = ("CoLA", "SST-2", "MRPC", "RTE", "STS-B", "QNLI", "QQP")
_ROW = dict(
    zip(
        (*_TASKS, "MNLI-m", "MNLI-mm"),
        (0.0, 0.799, 0.811, 0.516, 0.68, 0.667, 0.71, 0.445, 0.447),
        strict=True,
    )
)
_OTHER = dict(
    zip(_ROW, (0.567, 0.925, 0.898, 0.658, 0.857, 0.903, 0.876, 0.827, 0.832), strict=True)
)


def _average(scores):
    return (sum(scores[task] for task in _TASKS) + (scores["MNLI-m"] + scores["MNLI-mm"]) / 2) / 8


# 10.3: how often a sentence holds


def _pairs(one, other):
    return [(one[place], other[place]) for place in one if place in other]


def _count(one, other, higher_is_better):
    pairs = _pairs(one, other)
    return sum((a > b) if higher_is_better else (a < b) for a, b in pairs), len(pairs)


def _ties_hold(one, other, higher_is_better):
    pairs = _pairs(one, other)
    return sum((a >= b) if higher_is_better else (a <= b) for a, b in pairs), len(pairs)


def _all_counted(one, other, higher_is_better):
    return _count(one, other, higher_is_better)[0], len(one.keys() | other.keys())


def _by_seed_means(one, other, higher_is_better):
    held = cases = 0
    for removed in {removed for removed, _ in one.keys() & other.keys()}:
        means = [
            fmean(value for (at, _), value in side.items() if at == removed)
            for side in (one, other)
        ]
        held += means[0] > means[1] if higher_is_better else means[0] < means[1]
        cases += 1
    return held, cases


def _every_seed_with_every(one, other, higher_is_better):
    pairs = [(a, b) for (at, _), a in one.items() for (also, _), b in other.items() if at == also]
    return sum((a > b) if higher_is_better else (a < b) for a, b in pairs), len(pairs)


# 10.4: the memory labels of Table IV


def _memory(blocks, rest, removed):
    return 2 * (rest + (1 - removed) * blocks) / 2**30


EXERCISES = {
    "10.1": Exercise(
        cases=[(118.24, 75.42), (7.03, 7.94), (298.59, 471.83), (9.15, 9.27)],
        withheld=[(21.3, 20.0), (88.8, 99.9)],
        solution=_change,
        slips=slips(
            lambda value, base: round(100 * (1 - base / value), 1),
            "in per cent of the base, not of the value",
            lambda value, base: -_change(value, base),
            "the sign: what has fallen changes by less than 0",
            lambda value, base: round(value / base - 1, 3),
            "in per cent: 0.568 is 56.8 %",
            lambda value, base: round(100 * value / base, 1),
            "that is the value in per cent of the base: take 100 away",
            lambda value, base: round(value - base, 1),
            "that is the difference: per cent are asked for",
            _cut_off,
            "round, do not cut off: that is how 56.775 becomes 56.7",
        ),
    ),
    "10.2": Exercise(
        cases=[(_ROW,), (_OTHER,)],
        withheld=[
            (dict(zip(_ROW, (0.3, 0.8, 0.7, 0.6, 0.5, 0.75, 0.65, 0.4, 0.55), strict=True)),)
        ],
        solution=_average,
        slips=slips(
            lambda scores: fmean(scores.values()),
            "MNLI counts twice there: merge its two columns first",
            lambda scores: fmean([*(scores[task] for task in _TASKS), scores["MNLI-m"]]),
            "MNLI-mm is left out: the mean of both columns is MNLI's score",
            lambda scores: fmean(scores[task] for task in _TASKS),
            "MNLI is left out altogether",
            (
                lambda scores: (
                    (
                        sum(scores[task] for task in _TASKS)
                        + (scores["MNLI-m"] + scores["MNLI-mm"]) / 2
                    )
                    / 9
                )
            ),
            "eight tasks are left once the two columns are one",
            lambda scores: sum(scores.values()) / 8,
            "nine scores over eight: take the mean of the two MNLI columns, not their sum",
        ),
    ),
    "10.3": Exercise(
        cases=[
            (
                {(0.2, 0): 70, (0.2, 1): 80, (0.4, 0): 55},
                {(0.2, 0): 60, (0.2, 1): 82, (0.4, 0): 55},
                True,
            ),
            (
                {(0.2, 0): 9.0, (0.4, 0): 30.0},
                {(0.2, 0): 8.0, (0.4, 0): 31.0, (0.6, 0): 90.0},
                False,
            ),
            (
                {(0.2, 0): 3.0, (0.2, 1): 9.0, (0.2, 2): 4.0},
                {(0.2, 0): 2.0, (0.2, 1): 9.5, (0.2, 2): 3.5},
                True,
            ),
            ({(0.2, 0): 3.0, (0.2, 1): 9.0}, {(0.2, 0): 2.0, (0.2, 1): 9.0}, False),
        ],
        withheld=[
            (
                {(0.2, 0): 5, (0.4, 0): 7, (0.4, 1): 6},
                {(0.2, 0): 4, (0.4, 0): 8, (0.6, 1): 1},
                better,
            )
            for better in (True, False)
        ],
        solution=_count,
        slips=slips(
            _ties_hold,
            "a tie does not hold: equal is not better",
            lambda one, other, higher_is_better: _count(one, other, True),
            "of perplexities the lower one is better",
            _all_counted,
            "only places where both have a score are cases",
            _by_seed_means,
            "compare seed by seed: a mean hides how often it holds",
            _every_seed_with_every,
            "a seed is compared with itself only: the two share their base model and data",
            lambda one, other, higher_is_better: _count(other, one, higher_is_better),
            "the other way round: how often does the first beat the second?",
        ),
    ),
    "10.4": Exercise(
        cases=[
            (6_476_005_376, 262_410_240, 0.2),
            (6_476_005_376, 262_410_240, 0.6),
            (10**9, 10**8, 0.5),
        ],
        withheld=[(3 * 10**9, 10**8, 0.3)],
        solution=_memory,
        slips=slips(
            lambda blocks, rest, removed: 2 * (rest + (1 - removed) * blocks) / 1e9,
            "that is in units of 10⁹ bytes: the labels fit 2³⁰",
            lambda blocks, rest, removed: 2 * (1 - removed) * (rest + blocks) / 2**30,
            "the rest is not compressed: embeddings, head and norms stay as they are",
            lambda blocks, rest, removed: 2 * (rest + removed * blocks) / 2**30,
            "removed is what goes: 1 - removed is kept",
            lambda blocks, rest, removed: 2 * (1 - removed) * blocks / 2**30,
            "the rest takes memory, too",
            lambda blocks, rest, removed: 4 * (rest + (1 - removed) * blocks) / 2**30,
            "16 bits are two bytes",
        ),
    ),
}
