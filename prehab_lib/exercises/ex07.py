"""Exercises of notebooks 07 and 07b: loss changes, a walk, what is shipped, a correction."""

import numpy as np


def changes_of_outputs(weight, grad, bias, bias_grad):
    return -np.multiply(weight, grad).sum(1) - np.multiply(bias, bias_grad)


def per_number(tails, saved):
    return {name: tail / saved[name] for name, tail in tails.items()}


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


def lower_rank(shapes, ranks, room=1):
    """Ranks of the layers whose factors hold fewer numbers than the weight, by `room` at least."""
    sizes = {name: (m * n, m + n) for name, (m, n) in shapes.items()}
    return {of: r for of, r in ranks.items() if r * sizes[of][1] + room <= sizes[of][0]}


def dropped(changes, ranks):
    return sum(sum(changes[name][rank:]) for name, rank in ranks.items())


def along(direction, amount, square):
    """amount / square · direction."""
    return np.multiply(direction, amount / square)


def one_by_one(gradient, lost):
    return along(gradient, np.dot(gradient, lost), np.dot(gradient, gradient))


def restored(first, second, lost):
    gradients = np.array([first, second], dtype=float)
    return np.linalg.pinv(gradients) @ (gradients @ lost)
