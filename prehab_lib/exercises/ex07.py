"""Exercises of notebook 07, adaptive ranks: loss changes, the zero-sum walk, what a rank saves, the
correction.
"""

import math

from prehab_lib.exercises import Exercise, slips

# 7.1: first-order loss change of dropping each component


def _loss_changes(left, right, grad):
    rows, columns = range(len(grad)), range(len(grad[0]))
    return [
        -sum(grad[i][j] * left[i][a] * right[a][j] for i in rows for j in columns)
        for a in range(len(right))
    ]


def _transposed(left, right, grad):
    """zip stops at the shorter side, so nothing fails where grad is not square."""
    return [
        -sum(
            g * row[a] * r
            for grads, r in zip(grad, right[a], strict=False)
            for g, row in zip(grads, left, strict=False)
        )
        for a in range(len(right))
    ]


def _squared_sizes(left, right, grad):
    return [
        sum(row[a] ** 2 for row in left) * sum(r**2 for r in right[a]) for a in range(len(right))
    ]


def _with_all_after_it(left, right, grad):
    changes = _loss_changes(left, right, grad)
    return [sum(changes[a:]) for a in range(len(changes))]


# 7.2: the next drop of the zero-sum walk


def _next_drop(tails, balance):
    """Of the sign that pulls the sum towards zero, or of the other where that has none."""
    return _smallest(tails, _of_sign(tails, balance <= 0) or tails)


def _of_sign(tails, positive):
    return [name for name in tails if (tails[name] >= 0) == positive]


def _smallest(tails, names):
    return min(names, key=lambda name: (abs(tails[name]), name))


def _largest(tails, balance):
    return min(_of_sign(tails, balance <= 0) or tails, key=lambda name: (-abs(tails[name]), name))


def _lowest(tails, names):
    return min(names, key=lambda name: (tails[name], name))


def _strictly_positive(tails, balance):
    names = [name for name in tails if (tails[name] > 0 if balance <= 0 else tails[name] < 0)]
    return _smallest(tails, names or tails)


def _nothing_where_the_sign_has_none(tails, balance):
    names = _of_sign(tails, balance <= 0)
    return _smallest(tails, names) if names else None


# 7.3: what a rank saves


def _saved(shape, rank):
    return max(0, _balance_of_numbers(shape, rank))


def _balance_of_numbers(shape, rank):
    m, n = shape
    return m * n - rank * (m + n)


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


def _rest(grad, lost):
    return [whole - part for whole, part in zip(lost, _restored(grad, lost), strict=True)]


EXERCISES = {
    "7.1": Exercise(
        cases=[
            ([[1, 0], [0, 1]], [[2, 0], [1, 1]], [[3, 0], [-1, 2]]),
            ([[1, 2], [-1, 1]], [[2, 1], [0, -1]], [[1, -2], [0.5, 3]]),
            ([[1, 1], [2, -1]], [[0.5, 1, 0], [1, -1, 2]], [[0.2, -0.1, 0.4], [1, 0, -0.3]]),
        ],
        withheld=[
            (
                [[1, 0], [2, 1], [0, -1]],
                [[1, 0, 2, -1], [0, 1, 1, 3]],
                [[0.5, 0, 1, 0], [1, -1, 0, 2], [0, 0.3, 0.1, 0]],
            )
        ],
        solution=_loss_changes,
        slips=slips(
            lambda left, right, grad: [-change for change in _loss_changes(left, right, grad)],
            "the sign: the component is taken away, so the weight moves by minus left_a right_a",
            (
                lambda left, right, grad: [
                    abs(change) for change in _loss_changes(left, right, grad)
                ]
            ),
            "keep the sign: whether the loss rises or falls is what zero-sum balances",
            _transposed,
            "grad has the shape of W: row i goes with row i of left, column j with that of right",
            _squared_sizes,
            "that is the squared size of the component: the loss is not in it",
            _with_all_after_it,
            "that drops component a with all that follow it: here each one goes alone",
            lambda left, right, grad: sum(_loss_changes(left, right, grad)),
            "that is the change of dropping the whole layer: give one number for each component",
        ),
    ),
    "7.2": Exercise(
        cases=[
            ({"q": 0.3, "k": -0.1, "v": 0.2, "o": -0.4}, -0.05),
            ({"q": 0.3, "k": -0.1, "v": 0.05, "o": -0.4}, 0.35),
            ({"q": 0.3, "k": -0.1, "v": 0.2}, 0.0),
            ({"q": 0.3, "k": 0.2}, 0.6),
            ({"v": -0.5, "o": -0.2}, -0.3),
            (
                {"q": -0.2, "k": -0.2, "v": 0.1, "o": -0.3},
                0.35,
            ),  # a tie that other slips do not meet
            ({"q": 0.4, "k": 0.0, "v": -0.3}, -0.1),
        ],
        withheld=[({"a": 0.2, "b": -0.3, "c": 0.05}, 0.1), ({"b": 0.3, "a": 0.3}, 0.0)],
        solution=_next_drop,
        slips=slips(
            _largest,
            "the smallest goes first: the first order is least to be trusted for large changes",
            lambda tails, balance: _smallest(tails, _of_sign(tails, balance > 0) or tails),
            "the other way round: a sum at or below zero asks for a change that raises the loss",
            lambda tails, balance: _smallest(tails, tails),
            "that is the greedy rule, smallest whatever the sign: it never looks at the balance",
            lambda tails, balance: _lowest(tails, tails),
            "most negative first takes large changes, and the first order holds for small ones",
            lambda tails, balance: _lowest(tails, _of_sign(tails, balance <= 0) or tails),
            "the right sign, but smallest is meant by size: of -0.4 and -0.1 take -0.1",
            lambda tails, balance: _smallest(tails, _of_sign(tails, balance < 0) or tails),
            "at balance 0, where the walk begins, the changes of at least 0 go first",
            (
                lambda tails, balance: min(
                    tails, key=lambda name: (abs(balance + tails[name]), name)
                )
            ),
            "that brings the sum near zero: the rule takes the smallest of the sign it asks for",
            _nothing_where_the_sign_has_none,
            "where no layer has the sign it asks for, take from the other",
            _strictly_positive,
            "a change of exactly 0 counts with those above: it is the cheapest of all",
            (
                lambda tails, balance: min(
                    _of_sign(tails, balance <= 0) or tails, key=lambda name: abs(tails[name])
                )
            ),
            "of equals the first in the order of names goes, not the first in the dictionary",
        ),
    ),
    "7.3": Exercise(
        cases=[
            ((4, 4), 1),
            ((4096, 4096), 2047),
            ((4096, 4096), 3000),
            ((3072, 768), 100),
            ((1024, 4096), 900),
        ],
        withheld=[((100, 300), 74), ((100, 300), 75), ((768, 768), 200)],
        solution=_saved,
        slips=slips(
            _balance_of_numbers,
            "a layer whose factors would be larger stays dense: it saves 0, never less",
            lambda shape, rank: max(0, shape[0] * shape[1] - rank * shape[1]),
            "that counts V (r × n) alone: U (m × r) is stored too",
            lambda shape, rank: max(0, shape[0] * shape[1] - rank * shape[0]),
            "that counts U (m × r) alone: V (r × n) is stored too",
            lambda shape, rank: max(0, shape[0] * shape[1] - rank * max(shape)),
            "max(m, n) a rank is how remap counts: at equal precision a rank costs m + n",
            lambda shape, rank: rank * sum(shape),
            "that is what the factors hold: take it away from m n",
            lambda shape, rank: (min(shape) - rank) * sum(shape),
            "not every drop gives m + n back: above the break-even rank they give nothing",
            _dense_at_break_even,
            "at the break-even rank the factors are the smaller ones: dense begins one above",
        ),
    ),
    "7.4": Exercise(
        cases=[
            ([3, 4], [1, 2]),
            ([1, -2, 2, 0], [0.5, 1, -1, 3]),
            ([2, 0, -1], [1, 5, 2]),
            ([0, 0], [1, -1]),
        ],
        withheld=[([1, 1], [3, -1]), ([0.5, 0, 2], [4, 1, 1])],
        solution=_restored,
        slips=slips(
            lambda grad, lost: _along(grad, _dot(grad, lost), math.sqrt(_dot(grad, grad))),
            "divide by the square of grad's length: it is in ⟨grad, lost⟩ and in grad itself",
            lambda grad, lost: _along(grad, _dot(grad, lost), 1),
            "how long grad is must not matter: divide by ⟨grad, grad⟩",
            lambda grad, lost: _along(lost, _dot(grad, lost), _dot(lost, lost)),
            "that projects grad on lost: the step lies along grad, the shortest way",
            lambda grad, lost: [-x for x in _restored(grad, lost)],
            "the sign: the step must change the loss as giving back would, not undo it once more",
            _rest,
            "that is the part of lost that the loss does not feel: the step is the other part",
            lambda grad, lost: list(lost),
            "that gives everything back: right for the loss, but not the smallest step",
            lambda grad, lost: _restored(grad, lost) if any(grad) else list(lost),
            "where grad is zero the loss asks for nothing: the step is zero, not lost",
        ),
    ),
}
