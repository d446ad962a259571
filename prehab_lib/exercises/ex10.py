"""Exercises of notebook 10: a printed change, an average, ratio points, a memory label."""

import math
from itertools import pairwise
from statistics import fmean

from prehab_lib.exercises import load


def _change(value, base):
    return round(100 * (value / base - 1), 1)


def _without_mnli(scores):
    return [score for column, score in scores.items() if not column.startswith("MNLI")]


def _average(scores):
    return fmean([*_without_mnli(scores), (scores["MNLI-m"] + scores["MNLI-mm"]) / 2])


def _removed_at(removed, scores, score):
    """The fraction removed at which a falling curve has this score."""
    for left, right in pairwise(zip(removed, scores, strict=True)):
        if right[1] <= score <= left[1]:
            return left[0] + (right[0] - left[0]) * (left[1] - score) / (left[1] - right[1])
    raise ValueError("a score beyond the curve")


def _ratio_points(removed, scores, ours, theirs):
    apart = _removed_at(removed, scores, theirs) - _removed_at(removed, scores, ours)
    return 100 * apart


def _nearest(removed, scores, ours, theirs):
    """Read off the nearest point of the curve, without a line between."""
    curve = dict(zip(scores, removed, strict=True))
    one, other = (min(curve, key=lambda at: abs(at - score)) for score in (ours, theirs))
    return 100 * (curve[other] - curve[one])


def _one_slope(removed, scores, ours, theirs):
    slope = (removed[-1] - removed[0]) / (scores[0] - scores[-1])
    return 100 * slope * (ours - theirs)


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
        solution=_ratio_points,
        points_of_score=lambda removed, scores, ours, theirs: ours - theirs,
        per_cent_of_score=lambda removed, scores, ours, theirs: 100 * (ours / theirs - 1),
        as_a_fraction=lambda *given: _ratio_points(*given) / 100,
        other_way_round=lambda *given: -_ratio_points(*given),
        nearest_point=_nearest,
        one_slope=_one_slope,
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
