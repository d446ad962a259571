"""What dropping a component gives back: one way to count for plain factors, one for factors partly
in 8 bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

from prehab_lib.budget import break_even_rank


@dataclass(frozen=True)
class Terms:
    """How the rank of one layer W (m, n) counts, in numbers of the size of a weight.

    dense: m n.  full: min(m, n), the rank of W.  most: largest rank that is stored as factors, the
    layer is dense above it; 0 where no rank saves anything.  least: the floor, the smallest rank
    the layer may have.  unit: what one rank costs.
    """

    dense: int
    full: int
    most: int
    least: int
    unit: int

    def saved(self, rank: int) -> int:
        """m n − unit · rank as factors; 0 above `most`."""
        return self.dense - rank * self.unit if rank <= self.most else 0

    @property
    def reachable(self) -> int:
        """What the layer saves at its floor."""
        return self.saved(self.least) if self.most else 0


def break_even(shape: tuple[int, int], floor: Fraction) -> Terms:
    """Factors of equal precision: m + n a rank, dense above the break-even rank r*, floor max(1,
    ⌈floor · r*⌉).

    So the drops down to r* + 1 give nothing back, the one to r* gives m n − r* (m + n), and every
    further one m + n.
    """
    m, n = shape
    most = break_even_rank(shape)
    return Terms(dense=m * n, full=min(shape), most=most, least=_least(floor, most), unit=m + n)


def remap(shape: tuple[int, int], floor: Fraction) -> Terms:
    """Dobi-SVD's storage: max(m, n) a rank, every layer factorised, floor max(1, ⌈floor · min(m,
    n)⌉).

    The smaller factor and as many numbers of the larger one are kept in 8 bits, the rest in 16:
    together k max(m, n) numbers of 16 bits at rank k, scales not counted.  A layer of one row or
    column, whose only rank saves nothing, stays dense.
    """
    m, n = shape
    most = min(shape) if min(shape) > 1 else 0
    return Terms(dense=m * n, full=min(shape), most=most, least=_least(floor, most), unit=max(m, n))


ACCOUNTINGS: dict[str, Callable[[tuple[int, int], Fraction], Terms]] = {
    "break_even": break_even,
    "remap": remap,
}


def check_floor(floor: float) -> Fraction:
    """The exact decimal.  Raises ValueError unless it is a number from 0 to 1."""
    if isinstance(floor, bool) or not isinstance(floor, Real) or not 0 <= floor <= 1:
        raise ValueError(
            f"floor = {floor!r}: give the share of the largest useful rank that every layer keeps, from 0 to 1"
        )
    return Fraction(str(floor))


def budget_for(terms: dict[str, Terms], removed: Fraction, floor: float) -> int:
    """Numbers to take away, ⌊removed · Σ m n⌋ over all layers, those that stay dense included.

    Raises ValueError that says the nearest reachable `removed` where all layers at their floors
    save less.
    """
    total = sum(found.dense for found in terms.values())
    reachable = sum(found.reachable for found in terms.values())
    budget = math.floor(removed * total)
    if budget > reachable:
        nearest = math.floor(Fraction(reachable, total) * 10**4) / 10**4
        way_out = (
            f"the nearest reachable is removed = {nearest}"
            if nearest
            else "none of their ranks saves parameters"
        )
        raise ValueError(
            f"removed = {float(removed)} cannot be met: with every layer at its floor (floor = {floor}, at least rank 1) "
            f"{reachable} of these layers' {total} weights go; {way_out}"
        )
    return budget


def _least(floor: Fraction, most: int) -> int:
    return max(1, math.ceil(floor * most))
