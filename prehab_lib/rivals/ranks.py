"""What the hand-outs of ranks share: kinds of layers, the loss of a rank, and what it costs."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

from prehab_lib.budget import break_even_rank
from prehab_lib.decomposition import Decomposition
from prehab_lib.stats import LayerStats

Shape = tuple[int, int]  # (m, n) of a weight


def compressible(decompositions: Mapping[str, Decomposition]) -> dict[str, Shape]:
    """Layer -> (m, n), for the layers in which some rank saves parameters.

    In the order of their names, so that no answer depends on the order of the dict that came in.
    """
    shapes = {name: tuple(decompositions[name].shape) for name in sorted(decompositions)}
    return {name: shape for name, shape in shapes.items() if break_even_rank(shape)}


def groups_of_one_type(shapes: Mapping[str, Shape]) -> list[list[str]]:
    """Layers of one role in the blocks of a model: same name but for its numbers, same shape."""
    groups: dict[tuple, list[str]] = {}
    for name, shape in shapes.items():
        role = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        groups.setdefault((role, shape), []).append(name)
    return list(groups.values())


def parameters(shapes: Mapping[str, Shape], ranks: Mapping[str, int | None]) -> int:
    """Numbers these layers store at these ranks: r (m + n), and m n where a layer stays dense."""
    return sum(ranks[name] * (m + n) if ranks[name] else m * n for name, (m, n) in shapes.items())


def root_loss(decomposition: Decomposition, rank: int, stats: LayerStats | None = None) -> float:
    """Root of the squared ruler at `rank`, times √tokens where `stats` counted them.

    For the Gram, here a mean over tokens, that is ‖X (W − Ŵ)ᵀ‖_F over all calibration tokens: the
    unnormalised loss of SVD-LLM V2 and Swift-SVD, whose allocations depend on this scale.
    """
    tokens = stats.tokens if stats is not None and stats.tokens else 1
    return (decomposition.tail_error(rank) * tokens) ** 0.5


def share_out(
    total: Fraction | int, weights: Mapping[str, float], caps: Mapping[str, Fraction | int]
) -> dict[str, Fraction]:
    """`total` in proportion to `weights` (> 0), nobody above their cap; the others get what a cap
    cuts off.

    In exact fractions: shares sum to the total (to the sum of the caps where that is less), and
    equal weights get equal shares.
    """
    waiting = {name: Fraction(weight) for name, weight in weights.items()}
    shares: dict[str, Fraction] = {}
    left = Fraction(total)
    while waiting:
        unit = left / sum(waiting.values())
        full = [name for name, weight in waiting.items() if unit * weight >= caps[name]]
        if not full:
            return shares | {name: unit * weight for name, weight in waiting.items()}
        for name in full:
            shares[name] = Fraction(caps[name])
            left -= shares[name]
            del waiting[name]
    return shares


@dataclass(frozen=True)
class Cost:
    """What the ranks of one layer W (m, n) cost, in numbers of the size of a weight.

    dense: m n.  full: min(m, n).  most: the largest rank that is stored as factors; above it the
    layer is dense, and 0 says that no rank saves anything.  least: the smallest rank that the layer
    may have.  unit: what one rank costs.
    """

    dense: int
    full: int
    most: int
    least: int
    unit: int

    def saved(self, rank: int) -> int:
        """m n − unit · rank as factors; 0 above `most`."""
        return self.dense - rank * self.unit if rank <= self.most else 0


def break_even(shape: Shape) -> tuple[int, int]:
    """Factors of equal precision: dense above the break-even rank r*, and m + n numbers a rank."""
    return break_even_rank(shape), sum(shape)


def remap(shape: Shape) -> tuple[int, int]:
    """Dobi-SVD's storage, half in 8 bits (`quantised`): max(m, n) numbers of 16 bits a rank, every
    layer factorised but one of one row or column, whose only rank saves nothing.
    """
    return min(shape) if min(shape) > 1 else 0, max(shape)


# Name -> fn(shape) -> (largest rank that is stored as factors, numbers that one rank costs).
ACCOUNTINGS: dict[str, Callable[[Shape], tuple[int, int]]] = {
    "break_even": break_even,
    "remap": remap,
}


def costs_of(
    shapes: Mapping[str, Shape], accounting: str = "break_even", floor: float = 0.0
) -> dict[str, Cost]:
    """Layer -> what its ranks cost; no layer gets less than max(1, ⌈floor · most⌉).

    Raises ValueError for an unknown accounting, or a floor that is no number from 0 to 1.
    """
    if accounting not in ACCOUNTINGS:
        known = ", ".join(ACCOUNTINGS)
        raise ValueError(f"accounting = {accounting!r} is not known: choose one of {known}")
    if isinstance(floor, bool) or not isinstance(floor, Real) or not 0 <= floor <= 1:
        raise ValueError(
            f"floor = {floor!r}: give the share of the largest useful rank that every layer keeps, "
            "from 0 to 1"
        )
    costs = {}
    for name, shape in shapes.items():
        most, unit = ACCOUNTINGS[accounting](shape)
        least = max(1, math.ceil(Fraction(str(floor)) * most))
        costs[name] = Cost(math.prod(shape), min(shape), most, least, unit)
    return costs
