import itertools
from decimal import Decimal
from fractions import Fraction

import pytest

from prehab_lib.budget import break_even_rank, check_removed, rank_for

# By hand: rank at removed 0.2, 0.4, 0.6.
WORKED = {(768, 768): (307, 230, 153), (2304, 768): (460, 345, 230), (3072, 768): (491, 368, 245)}
WORKED |= {(4096, 4096): (1638, 1228, 819), (11008, 4096): (2388, 1791, 1194), (1024, 4096): (655, 491, 327)}


def test_worked_ranks():
    for shape, ranks in WORKED.items():
        assert tuple(rank_for(shape, removed) for removed in (0.2, 0.4, 0.6)) == ranks, shape
        assert rank_for(shape, 0.4) == rank_for(shape[::-1], 0.4), shape


def test_rank_is_the_largest_that_fits():
    for m, n in [(3, 7), (64, 64), (100, 64), (1, 9), (9, 1), (2, 2)]:
        for removed in [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.99]:
            rank, kept = rank_for((m, n), removed), (1 - Fraction(str(removed))) * m * n
            assert rank == 1 or rank * (m + n) <= kept, f"{m} × {n}, {removed}"
            assert (rank + 1) * (m + n) > kept, f"{m} × {n}, {removed}"


def test_the_decimal_is_taken_as_typed():
    # 0.9 of 20 x 20 leaves 40 numbers, one rank; 1 - 0.9 in binary is a little less than 0.1.
    assert (1 - 0.9) * 400 < 40
    assert rank_for((20, 20), 0.9) == 1
    assert rank_for((200, 200), 0.9) == 10
    assert check_removed(0.1) == Fraction(1, 10)


def test_break_even_is_where_factors_stop_being_smaller():
    for m, n in itertools.product(range(1, 12), repeat=2):
        smaller = [rank for rank in range(m * n + 1) if rank * (m + n) < m * n]
        assert break_even_rank((m, n)) == max(smaller), f"{m} × {n}"


def test_bad_removed_is_refused_by_name():
    numbers = [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), float("inf")]
    for removed in [*numbers, "40", "0.4", None, True, [0.4], Decimal("0.4")]:
        with pytest.raises(ValueError, match="removed = .*strictly between 0 and 1"):
            rank_for((8, 8), removed)
    with pytest.raises(ValueError, match="at least one row"):
        rank_for((0, 8), 0.4)
