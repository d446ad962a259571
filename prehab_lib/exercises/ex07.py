"""Exercises of notebook 07, adaptive ranks: loss changes, the walk, savings, the correction."""

import math

import numpy as np


def loss_changes(left, right, grad):
    return -np.einsum("ia,aj,ij->a", left, right, grad)


def transposed(left, right, grad):
    """Cut to a square, so nothing fails where grad is none."""
    side = min(np.shape(grad))
    square = np.array(grad)[:side, :side].T
    return loss_changes(np.array(left)[:side], np.array(right)[:, :side], square)


def of_sign(tails, positive):
    """Those of this sign, or all where none has it."""
    return {name: tail for name, tail in tails.items() if (tail >= 0) == positive} or tails


def smallest(tails, size=abs):
    return min(tails, key=lambda name: (size(tails[name]), name))


def next_drop(tails, balance, size=abs):
    return smallest(of_sign(tails, balance <= 0), size)


def nothing_of_the_other_sign(tails, balance):
    name = next_drop(tails, balance)
    return name if (tails[name] >= 0) == (balance <= 0) else None


def zero_left_out(tails, balance):
    sign = 1 if balance <= 0 else -1
    return smallest({name: tail for name, tail in tails.items() if sign * tail > 0} or tails)


def difference(shape, rank):
    return math.prod(shape) - rank * sum(shape)


def along(direction, amount, square):
    """amount / square · direction; zeros where square is 0."""
    return np.multiply(direction, amount / square if square else 0.0)


def restored(grad, lost):
    return along(grad, np.dot(grad, lost), np.dot(grad, grad))
