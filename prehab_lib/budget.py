"""How many parameters a rank costs, and which rank a budget allows.

`removed` is the fraction of a layer's parameters taken away.  The papers say "ratio" for this, for
the kept fraction, and for the kept share of the *singular values*.
"""

import math
from fractions import Fraction
from numbers import Real


def check_removed(removed: float) -> Fraction:
    """The exact decimal a reader typed: 0.4 becomes 2/5, not the nearest binary fraction.

    Raises ValueError unless `removed` is a number strictly between 0 and 1.
    """
    is_number = isinstance(removed, Real) and not isinstance(removed, bool)
    if not (is_number and 0 < removed < 1):
        example = "as a number strictly between 0 and 1, for example 0.4"
        remedy = f"give the fraction of parameters to take away {example}"
        raise ValueError(f"removed = {removed!r}: {remedy}")
    return Fraction(str(removed))


def rank_for(shape: tuple[int, int], removed: float) -> int:
    """Largest rank r whose two factors, r (m + n) numbers, fit in (1 - removed) m n; at least 1.

    shape (m, n).  Source: SVD-LLM (arXiv 2403.07378), "R_w" there is `removed` here.
    Raises ValueError for a bad `removed` or shape.
    """
    m, n = _check_shape(shape)
    return max(1, math.floor((1 - check_removed(removed)) * m * n / (m + n)))


def break_even_rank(shape: tuple[int, int]) -> int:
    """Largest rank at which the factors hold strictly fewer numbers than W; 0 for a 1 × n layer."""
    m, n = _check_shape(shape)
    return (m * n - 1) // (m + n)


def _check_shape(shape: tuple[int, int]) -> tuple[int, int]:
    m, n = shape
    if m < 1 or n < 1:
        raise ValueError(f"shape = {tuple(shape)}: a weight has at least one row and one column")
    return int(m), int(n)
