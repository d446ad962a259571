"""Exercises of notebook 10, the audit: a printed change, an average, pairs, a memory label."""

from statistics import fmean


def change(value, base):
    return round(100 * (value / base - 1), 1)


def without_mnli(scores):
    return [score for column, score in scores.items() if not column.startswith("MNLI")]


def average(scores):
    return fmean([*without_mnli(scores), (scores["MNLI-m"] + scores["MNLI-mm"]) / 2])


def by_place(scores):
    """removed -> seed -> score, as YAML has it, as (removed, seed) -> score."""
    return {
        (removed, seed): scores[removed][seed] for removed in scores for seed in scores[removed]
    }


def held(pairs, higher_is_better):
    return sum(a > b if higher_is_better else a < b for a, b in pairs), len(pairs)


def count(one, other, higher_is_better):
    return held([(one[at], other[at]) for at in one if at in other], higher_is_better)


def ties_hold(one, other, higher_is_better):
    lost, cases = count(other, one, higher_is_better)
    return cases - lost, cases


def means(scores):
    """removed -> the mean over its seeds."""
    return {at: fmean(scores[place] for place in scores if place[0] == at) for at, _ in scores}


def every_seed_with_every(one, other, higher_is_better):
    pairs = [(a, b) for (at, _), a in one.items() for (also, _), b in other.items() if at == also]
    return held(pairs, higher_is_better)


def gibibytes(parameters):
    return 2 * parameters / 2**30
