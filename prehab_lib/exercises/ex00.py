"""Exercises of notebook 00, how to read this book: ranks, errors, the readings of "ratio"."""

from fractions import Fraction


def allowed(m, n, removed):
    return (1 - Fraction(str(removed))) * m * n / (m + n)


def pull(s, rank):
    return s[rank] if rank < len(s) else s.new_zeros(())  # the least τ that leaves `rank` values


def kept(shapes, ranks):
    factors = sum(rank * (m + n) for (m, n), rank in zip(shapes, ranks, strict=True))
    return factors / sum(m * n for m, n in shapes)
