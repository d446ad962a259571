"""Exercises of notebook 10: a relative gain, an average, ratio points, a model that fits."""

from itertools import pairwise
from statistics import fmean


def relative(value, arrow):
    return round(100 * arrow / (value - arrow), 1)


def without_mnli(scores):
    return [score for column, score in scores.items() if not column.startswith("MNLI")]


def average(scores):
    return fmean([*without_mnli(scores), (scores["MNLI-m"] + scores["MNLI-mm"]) / 2])


def removed_at(removed, scores, score):
    """The fraction removed at which a falling curve has this score."""
    for left, right in pairwise(zip(removed, scores, strict=True)):
        if right[1] <= score <= left[1]:
            return left[0] + (right[0] - left[0]) * (left[1] - score) / (left[1] - right[1])
    raise ValueError("a score beyond the curve")


def ratio_points(removed, scores, ours, theirs):
    return 100 * (removed_at(removed, scores, theirs) - removed_at(removed, scores, ours))


def nearest(removed, scores, ours, theirs):
    """Read off the nearest point of the curve, without a line between."""
    curve = dict(zip(scores, removed, strict=True))
    one, other = (min(curve, key=lambda at: abs(at - score)) for score in (ours, theirs))
    return 100 * (curve[other] - curve[one])


def one_slope(removed, scores, ours, theirs):
    slope = (removed[-1] - removed[0]) / (scores[0] - scores[-1])
    return 100 * slope * (ours - theirs)


def fitting(rest, blocks, size):
    return 1 - (size / 2 - rest) / blocks
