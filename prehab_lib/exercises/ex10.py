"""Exercises of notebook 10, the audit: a printed change, an average, pairs, a memory label."""

from statistics import fmean


def change(value, base):
    return round(100 * (value / base - 1), 1)


def without_mnli(scores):
    return [score for column, score in scores.items() if not column.startswith("MNLI")]


def average(scores):
    return fmean([*without_mnli(scores), (scores["MNLI-m"] + scores["MNLI-mm"]) / 2])


def places(one, other, higher_is_better):
    """The scores, written as removed -> seed -> score, as (removed, seed) -> score."""
    flat = [{}, {}]
    for scores, side in zip(flat, (one, other), strict=True):
        for removed, seeds in side.items():
            scores |= {(removed, seed): score for seed, score in seeds.items()}
    return *flat, higher_is_better


def held(pairs, higher_is_better):
    return sum(a > b if higher_is_better else a < b for a, b in pairs), len(pairs)


def count(one, other, higher_is_better):
    return held([(one[at], other[at]) for at in one if at in other], higher_is_better)


def ties_hold(one, other, higher_is_better):
    lost, cases = count(other, one, higher_is_better)
    return cases - lost, cases


def means(scores):
    values = {}
    for (removed, _), score in scores.items():
        values.setdefault(removed, []).append(score)
    return {removed: fmean(scores) for removed, scores in values.items()}


def every_seed_with_every(one, other, higher_is_better):
    pairs = [(a, b) for (at, _), a in one.items() for (also, _), b in other.items() if at == also]
    return held(pairs, higher_is_better)


def gibibytes(parameters):
    return 2 * parameters / 2**30
