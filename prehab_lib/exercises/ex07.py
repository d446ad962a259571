"""Exercises of notebook 07, adaptive ranks: loss changes, the walk, savings, the correction."""

import math

import numpy as np

from prehab_lib.exercises import load


def _loss_changes(left, right, grad):
    return -np.einsum("ia,aj,ij->a", left, right, grad)


def _transposed(left, right, grad):
    """Cut to a square, so nothing fails where grad is none."""
    side = min(np.shape(grad))
    square = np.array(grad)[:side, :side].T
    return _loss_changes(np.array(left)[:side], np.array(right)[:, :side], square)


def _of_sign(tails, positive):
    """Those of this sign, or all where none has it."""
    return {name: tail for name, tail in tails.items() if (tail >= 0) == positive} or tails


def _smallest(tails, size=abs):
    return min(tails, key=lambda name: (size(tails[name]), name))


def _next_drop(tails, balance, size=abs):
    return _smallest(_of_sign(tails, balance <= 0), size)


def _nothing_of_the_other_sign(tails, balance):
    name = _next_drop(tails, balance)
    return name if (tails[name] >= 0) == (balance <= 0) else None


def _zero_left_out(tails, balance):
    sign = 1 if balance <= 0 else -1
    return _smallest({name: tail for name, tail in tails.items() if sign * tail > 0} or tails)


def _difference(shape, rank):
    return math.prod(shape) - rank * sum(shape)


def _saved(shape, rank):
    return max(0, _difference(shape, rank))


def _along(direction, amount, square):
    """amount / square · direction; zeros where square is 0."""
    return np.multiply(direction, amount / square if square else 0.0)


def _restored(grad, lost):
    return _along(grad, np.dot(grad, lost), np.dot(grad, grad))


ANSWERS = {
    "7.1": dict(
        solution=_loss_changes,
        sign_turned=lambda *matrices: -_loss_changes(*matrices),
        without_sign=lambda *matrices: abs(_loss_changes(*matrices)),
        transposed=_transposed,
        squared_sizes=lambda left, right, grad: np.square(left).sum(0) * np.square(right).sum(1),
        with_all_after_it=lambda *matrices: _loss_changes(*matrices)[::-1].cumsum()[::-1],
        whole_layer=lambda *matrices: _loss_changes(*matrices).sum(),
    ),
    "7.2": dict(
        solution=_next_drop,
        largest=lambda tails, balance: _next_drop(tails, balance, lambda tail: -abs(tail)),
        other_way_round=lambda tails, balance: _smallest(_of_sign(tails, balance > 0)),
        greedy=lambda tails, balance: _smallest(tails),
        most_negative=lambda tails, balance: _smallest(tails, lambda tail: tail),
        lowest_of_sign=lambda tails, balance: _next_drop(tails, balance, lambda tail: tail),
        wrong_at_zero=lambda tails, balance: _smallest(_of_sign(tails, balance < 0)),
        nearest_to_balance=lambda tails, sum: _smallest(tails, lambda tail: abs(sum + tail)),
        nothing_of_the_other_sign=_nothing_of_the_other_sign,
        zero_left_out=_zero_left_out,
        first_of_equals=lambda tails, balance: min(
            _of_sign(tails, balance <= 0), key=lambda name: abs(tails[name])
        ),
    ),
    "7.3": dict(
        arguments=lambda shape, rank: (tuple(shape), rank),
        solution=_saved,
        below_zero=_difference,
        right_factor_alone=lambda shape, rank: max(0, math.prod(shape) - rank * shape[1]),
        left_factor_alone=lambda shape, rank: max(0, math.prod(shape) - rank * shape[0]),
        counted_as_remap=lambda shape, rank: max(0, math.prod(shape) - rank * max(shape)),
        what_factors_hold=lambda shape, rank: rank * sum(shape),
        every_drop_saves=lambda shape, rank: (min(shape) - rank) * sum(shape),
        dense_at_break_even=lambda s, r: _saved(s, r) * (r < (math.prod(s) - 1) // sum(s)),
    ),
    "7.4": dict(
        solution=_restored,
        divided_by_length=lambda grad, lost: _along(grad, np.dot(grad, lost), math.hypot(*grad)),
        not_divided=lambda grad, lost: _along(grad, np.dot(grad, lost), 1),
        along_lost=lambda grad, lost: _along(lost, np.dot(grad, lost), np.dot(lost, lost)),
        sign_turned=lambda grad, lost: -_restored(grad, lost),
        not_felt=lambda grad, lost: np.subtract(lost, _restored(grad, lost)),
        all_given_back=lambda grad, lost: lost,
        lost_where_grad_is_zero=lambda grad, lost: _restored(grad, lost) if any(grad) else lost,
    ),
}
EXERCISES = load("ex07.yaml", ANSWERS)
