"""Exercises of notebook 07, adaptive ranks: loss changes, the zero-sum walk, what a rank saves, the
correction.
"""

import math

from prehab_lib.exercises import load

# 7.1: first-order loss change of dropping each component


def _loss_changes(left, right, grad):
    rows, columns = range(len(grad)), range(len(grad[0]))
    return [
        -sum(grad[i][j] * left[i][a] * right[a][j] for i in rows for j in columns)
        for a in range(len(right))
    ]


def _transposed(left, right, grad):
    """Cut to a square, so nothing fails where grad is none."""
    side = range(min(len(grad), len(grad[0])))
    return [
        -sum(grad[i][j] * left[j][a] * right[a][i] for i in side for j in side)
        for a in range(len(right))
    ]


def _squared_sizes(left, right, grad):
    columns = zip(*left, strict=True)
    return [_dot(l, l) * _dot(r, r) for l, r in zip(columns, right, strict=True)]


def _with_all_after_it(left, right, grad):
    changes = _loss_changes(left, right, grad)
    return [sum(changes[a:]) for a in range(len(changes))]


# 7.2: the next drop of the zero-sum walk


def _of_sign(tails, positive):
    """Those of this sign, or all where none has it."""
    return {name: tail for name, tail in tails.items() if (tail >= 0) == positive} or tails


def _smallest(tails):
    return min(tails, key=lambda name: (abs(tails[name]), name))


def _lowest(tails):
    return min(tails, key=lambda name: (tails[name], name))


def _next_drop(tails, balance):
    return _smallest(_of_sign(tails, balance <= 0))


def _largest(tails, balance):
    asked = _of_sign(tails, balance <= 0)
    return min(asked, key=lambda name: (-abs(asked[name]), name))


def _nearest_to_balance(tails, balance):
    return min(tails, key=lambda name: (abs(balance + tails[name]), name))


def _nothing_of_the_other_sign(tails, balance):
    name = _next_drop(tails, balance)
    return name if (tails[name] >= 0) == (balance <= 0) else None


def _zero_left_out(tails, balance):
    sign = 1 if balance <= 0 else -1
    return _smallest({name: tail for name, tail in tails.items() if sign * tail > 0} or tails)


def _first_of_equals(tails, balance):
    asked = _of_sign(tails, balance <= 0)
    return min(asked, key=lambda name: abs(asked[name]))


# 7.3: what a rank saves


def _difference(shape, rank):
    m, n = shape
    return m * n - rank * (m + n)


def _saved(shape, rank):
    return max(0, _difference(shape, rank))


def _dense_at_break_even(shape, rank):
    m, n = shape
    return _saved(shape, rank) if rank < (m * n - 1) // (m + n) else 0


# 7.4: the smallest step with the same loss change


def _dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def _along(direction, amount, square):
    """amount / square · direction; zeros where square is 0."""
    return [amount / square * x if square else 0.0 for x in direction]


def _restored(grad, lost):
    return _along(grad, _dot(grad, lost), _dot(grad, grad))


def _not_felt(grad, lost):
    return [whole - part for whole, part in zip(lost, _restored(grad, lost), strict=True)]


ANSWERS = {
    "7.1": dict(
        solution=_loss_changes,
        sign_turned=lambda *matrices: [-change for change in _loss_changes(*matrices)],
        without_sign=lambda *matrices: [abs(change) for change in _loss_changes(*matrices)],
        transposed=_transposed,
        squared_sizes=_squared_sizes,
        with_all_after_it=_with_all_after_it,
        whole_layer=lambda *matrices: sum(_loss_changes(*matrices)),
    ),
    "7.2": dict(
        solution=_next_drop,
        largest=_largest,
        other_way_round=lambda tails, balance: _smallest(_of_sign(tails, balance > 0)),
        greedy=lambda tails, balance: _smallest(tails),
        most_negative=lambda tails, balance: _lowest(tails),
        lowest_of_sign=lambda tails, balance: _lowest(_of_sign(tails, balance <= 0)),
        wrong_at_zero=lambda tails, balance: _smallest(_of_sign(tails, balance < 0)),
        nearest_to_balance=_nearest_to_balance,
        nothing_of_the_other_sign=_nothing_of_the_other_sign,
        zero_left_out=_zero_left_out,
        first_of_equals=_first_of_equals,
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
        dense_at_break_even=_dense_at_break_even,
    ),
    "7.4": dict(
        solution=_restored,
        divided_by_length=lambda grad, lost: _along(grad, _dot(grad, lost), math.hypot(*grad)),
        not_divided=lambda grad, lost: _along(grad, _dot(grad, lost), 1),
        along_lost=lambda grad, lost: _along(lost, _dot(grad, lost), _dot(lost, lost)),
        sign_turned=lambda grad, lost: [-x for x in _restored(grad, lost)],
        not_felt=_not_felt,
        all_given_back=lambda grad, lost: list(lost),
        lost_where_grad_is_zero=lambda grad, lost: _restored(grad, lost) if any(grad) else lost,
    ),
}
EXERCISES = load("ex07.yaml", ANSWERS)
