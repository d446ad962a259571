"""Exercises of notebook 08, cost: operations, the roofline, a refresh shared out, a speed-up."""


def step_operations(m, n, count=2):
    """count: operations of one step in a product, a multiplication and an addition."""
    p, q = min(m, n), max(m, n)
    return count * (2 * m * n * n + 3 * p * p * q) + 9 * p**3


def seconds(operations, size, rate, bandwidth):
    return operations / rate, size / bandwidth


def whole_round(fresh, held, every):
    return fresh + (every - 1) * held
