"""Exercises of notebook 00, how to read this book: ranks, errors and the readings of "ratio"."""

from fractions import Fraction

from prehab_lib.exercises import load


def allowed(m, n, removed):
    return (1 - Fraction(str(removed))) * m * n / (m + n)


def share_kept(m, n, rank):
    return rank * (m + n) / (m * n)


EXERCISES = load("ex00.yaml", globals())
