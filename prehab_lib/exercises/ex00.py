"""Exercises of notebook 00, how to read this book: ranks, errors and the readings of "ratio"."""

import math
from fractions import Fraction

import torch

from prehab_lib.budget import rank_for
from prehab_lib.exercises import Exercise, slips


def _tensor(*entries):
    return torch.tensor(entries, dtype=torch.float64)


# 0.1: the rank a budget allows


def _exact(m, n, removed):
    return (1 - Fraction(str(removed))) * m * n / (m + n)


# 0.3: parameters kept when a share of the singular values is kept


def _kept(m, n, share):
    return math.ceil(share * min(m, n)) * (m + n) / (m * n)


EXERCISES = {
    "0.1": Exercise(
        cases=[(768, 768, 0.4), (768, 768, 0.6), (3072, 768, 0.2), (40, 40, 0.9)],
        withheld=[(1024, 4096, 0.3), (20, 20, 0.8)],
        solution=lambda m, n, removed: rank_for((m, n), removed=removed),
        slips=slips(
            lambda m, n, removed: math.floor((1 - removed) * m * n / (m + n)),
            "one short for 40 × 40: 1 - 0.9 is below 0.1 in binary, use Fraction(str(removed))",
            lambda m, n, removed: round(_exact(m, n, removed)),
            "rounding to the nearest rank can overspend the budget: round down",
            lambda m, n, removed: math.ceil(_exact(m, n, removed)),
            "rounding up overspends: the budget is an upper limit",
            lambda m, n, removed: math.floor(removed * Fraction(m * n, m + n)),
            "that is the rank for what is removed: the factors get what is kept, 1 - removed",
            lambda m, n, removed: math.floor((1 - Fraction(str(removed))) * min(m, n)),
            "that keeps a share of the rank, whose unit costs m + n numbers: divide m n by m + n",
            lambda m, n, removed: int((1 - removed) * min(m, n)),
            "that keeps a share of min(m, n): a rank costs m + n numbers, so divide m n by m + n",
            lambda m, n, removed: round((1 - removed) * min(m, n)),
            "that keeps a share of min(m, n), rounded: a unit of rank costs m + n numbers",
            lambda m, n, removed: math.ceil((1 - removed) * min(m, n)),
            "that keeps a share of min(m, n), rounded up: a unit of rank costs m + n numbers",
            lambda m, n, removed: min(m, n),
            "that is the full rank, at which the factors hold more numbers than W",
        ),
    ),
    "0.2": Exercise(
        cases=[(_tensor(12, 4, 3), 1), (_tensor(8, 4, 4, 2), 1), (_tensor(5, 1), 2)],
        withheld=[(_tensor(9, 6, 2, 1), 2), (_tensor(7, 2), 0)],
        solution=lambda s, rank: s[rank:].square().sum().sqrt(),
        slips=slips(
            lambda s, rank: s[rank:].square().sum(),
            "that is the squared error: take the root, 25 becomes 5",
            lambda s, rank: s[rank:].sum(),
            "7 is 4 + 3: the dropped parts are at right angles, so add their squares",
            lambda s, rank: s[:rank].square().sum().sqrt(),
            "12 is what was kept: the error is what was dropped",
            lambda s, rank: s[rank + 1 :].square().sum().sqrt(),
            "one value too few: s[0] is the first, so s[rank:] starts with the first one dropped",
            lambda s, rank: s[rank] if rank < len(s) else _tensor(0)[0],
            "4 is the error in the spectral norm, the largest dropped: Frobenius counts all",
        ),
    ),
    "0.3": Exercise(
        cases=[(768, 768, 0.6), (768, 3072, 0.4), (768, 768, 0.5), (3072, 768, 0.4)],
        withheld=[(1024, 4096, 0.7), (10, 7, 0.45)],
        solution=_kept,
        slips=slips(
            lambda m, n, share: share,
            "that reads the number as a share of the parameters: here it counts singular values",
            lambda m, n, share: 1 - share,
            "that is what would be removed, if the number counted parameters",
            lambda m, n, share: math.ceil(share * min(m, n)) * m / (m * n),
            "only one factor is counted: U has m r numbers and V has r n",
            lambda m, n, share: math.floor(share * min(m, n)) * (m + n) / (m * n),
            "the release rounds the rank up, not down",
            lambda m, n, share: math.ceil(share * max(m, n)) * (m + n) / (m * n),
            "there are only min(m, n) singular values",
            lambda m, n, share: math.ceil(share * m) * (m + n) / (m * n),
            "right where m is the shorter side: there are only min(m, n) singular values",
            lambda m, n, share: math.ceil(share * n) * (m + n) / (m * n),
            "right where n is the shorter side: there are only min(m, n) singular values, not n",
        ),
    ),
    "0.4": Exercise(
        cases=[
            (_tensor(2, 1), _tensor(1, 3)),
            (_tensor(4, 1), _tensor(1, 3)),
            (_tensor(1, 9, 4), _tensor(4, 1, 2.5)),
            (_tensor(10, 9, 8, 5, 1.5), _tensor(1, 0.5, 2, 4, 10)),
        ],
        withheld=[(_tensor(3, 2, 5), _tensor(2, 4, 1)), (_tensor(6, 1, 2), _tensor(1, 1, 2))],
        solution=lambda w, rms: (w * rms).argmax(),
        slips=slips(
            lambda w, rms: w.argmax(),
            "that is plain SVD: it does not look at the inputs",
            lambda w, rms: rms.argmax(),
            "a loud input that the weight hardly reads does not reach the output",
            lambda w, rms: (w * rms.square()).argmax(),
            "that multiplies by the Gram, rms²: its root L belongs there",
            lambda w, rms: (w * rms).argmin(),
            "that is the direction to drop first",
            lambda w, rms: (w * rms.sqrt()).argmax(),
            "one root too many: the Gram holds rms², and its root L is rms itself",
            lambda w, rms: (w / rms).argmax(),
            "a loud input counts for more, not for less: multiply by its rms",
        ),
    ),
}
