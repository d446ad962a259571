"""Exercises of notebook 10, the audit: a printed change, an average, pairs, a memory label."""

import math
from statistics import fmean

from prehab_lib.exercises import load


def _change(value, base):
    return round(100 * (value / base - 1), 1)


def _without_mnli(scores):
    return [score for column, score in scores.items() if not column.startswith("MNLI")]


def _average(scores):
    return fmean([*_without_mnli(scores), (scores["MNLI-m"] + scores["MNLI-mm"]) / 2])


def _places(one, other, higher_is_better):
    """The scores, written as removed -> seed -> score, as (removed, seed) -> score."""
    flat = [{}, {}]
    for scores, side in zip(flat, (one, other), strict=True):
        for removed, seeds in side.items():
            scores |= {(removed, seed): score for seed, score in seeds.items()}
    return *flat, higher_is_better


def _held(pairs, higher_is_better):
    return sum(a > b if higher_is_better else a < b for a, b in pairs), len(pairs)


def _count(one, other, higher_is_better):
    return _held([(one[at], other[at]) for at in one if at in other], higher_is_better)


def _ties_hold(one, other, higher_is_better):
    lost, cases = _count(other, one, higher_is_better)
    return cases - lost, cases


def _means(scores):
    values = {}
    for (removed, _), score in scores.items():
        values.setdefault(removed, []).append(score)
    return {removed: fmean(scores) for removed, scores in values.items()}


def _every_seed_with_every(one, other, higher_is_better):
    pairs = [(a, b) for (at, _), a in one.items() for (also, _), b in other.items() if at == also]
    return _held(pairs, higher_is_better)


def _gibibytes(parameters):
    return 2 * parameters / 2**30


ANSWERS = {
    "10.1": dict(
        solution=_change,
        of_the_value=lambda value, base: round(100 * (1 - base / value), 1),
        sign_turned=lambda value, base: -_change(value, base),
        as_a_fraction=lambda value, base: round(value / base - 1, 3),
        ratio=lambda value, base: round(100 * value / base, 1),
        difference=lambda value, base: round(value - base, 1),
        cut_off=lambda value, base: math.trunc(1000 * (value / base - 1)) / 10,
    ),
    "10.2": dict(
        solution=_average,
        mean_of_nine=lambda scores: fmean(scores.values()),
        half_of_mnli=lambda scores: fmean([*_without_mnli(scores), scores["MNLI-m"]]),
        without_mnli=lambda scores: fmean(_without_mnli(scores)),
        divided_by_nine=lambda scores: _average(scores) * 8 / 9,
        nine_over_eight=lambda scores: sum(scores.values()) / 8,
    ),
    "10.3": dict(
        arguments=_places,
        solution=_count,
        ties_hold=_ties_hold,
        higher_always=lambda one, other, higher_is_better: _count(one, other, True),
        all_counted=lambda one, other, up: (_count(one, other, up)[0], len(one | other)),
        by_seed_means=lambda one, other, higher: _count(_means(one), _means(other), higher),
        every_seed_with_every=_every_seed_with_every,
        other_way_round=lambda one, other, higher_is_better: _count(other, one, higher_is_better),
    ),
    "10.4": dict(
        solution=lambda blocks, rest, removed: _gibibytes(rest + (1 - removed) * blocks),
        in_gigabytes=lambda blocks, rest, removed: 2 * (rest + (1 - removed) * blocks) / 1e9,
        rest_compressed=lambda blocks, rest, removed: _gibibytes((1 - removed) * (rest + blocks)),
        removed_kept=lambda blocks, rest, removed: _gibibytes(rest + removed * blocks),
        rest_forgotten=lambda blocks, rest, removed: _gibibytes((1 - removed) * blocks),
        four_bytes=lambda blocks, rest, removed: 2 * _gibibytes(rest + (1 - removed) * blocks),
    ),
}
EXERCISES = load("ex10.yaml", ANSWERS)
