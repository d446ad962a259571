"""Exercises of notebook 08, cost: products, the roofline, steps of a refresh, tokens of a step."""

import math


def by_products(m, n, rounds, side=min, count=2):
    """count: operations of one step in a product, a multiplication and an addition."""
    p = side(m, n)
    return count * (2 * m * n * n + rounds * (2 * m * n * p + p**3))


def seconds(operations, size, rate, bandwidth):
    return operations / rate, size / bandwidth


def fewest(added, room):
    return max(1, int(-(-added // room))) if room > 0 else 0


def tokens(n, share, vectors=4):
    """Tokens at which the product with G and a warm round are this share of three products."""
    return math.ceil((2 * n + 4 * vectors) / (6 * share))
