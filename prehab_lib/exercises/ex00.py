"""Exercises of notebook 00, how to read this book: ranks, errors and the readings of "ratio"."""

from fractions import Fraction


def allowed(m, n, removed):
    return (1 - Fraction(str(removed))) * m * n / (m + n)


def share_kept(m, n, rank):
    return rank * (m + n) / (m * n)
