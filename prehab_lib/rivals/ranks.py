"""What the hand-outs of ranks share: kinds of layers, the loss of a rank, and what it costs."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

from prehab_lib.budget import break_even_rank
from prehab_lib.decomposition import Decomposition
from prehab_lib.inputs import check_choice
from prehab_lib.stats import LayerStats

Shape = tuple[int, int]  # (m, n) of a weight
Cuts = Mapping[str, Decomposition]  # layer -> its decomposition
Stats = Mapping[str, LayerStats]  # layer -> its statistics
Ranks = dict[str, int | None]  # layer -> its rank, None where it stays dense


def compressible(decompositions: Cuts) -> dict[str, Shape]:
    """Layer -> (m, n) where some rank saves parameters, in the order of names."""
    shapes = {name: tuple(decompositions[name].shape) for name in sorted(decompositions)}
    return {name: shape for name, shape in shapes.items() if break_even_rank(shape)}


def groups_of_one_type(shapes: Mapping[str, Shape]) -> list[list[str]]:
    """Layers of one role in the blocks of a model: same name but for its numbers, same shape."""
    groups: dict[tuple, list[str]] = {}
    for name, shape in shapes.items():
        role = re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
        groups.setdefault((role, shape), []).append(name)
    return list(groups.values())


def parameters(shapes: Mapping[str, Shape], ranks: Ranks) -> int:
    """Numbers these layers store at these ranks: r (m + n), and m n where a layer stays dense."""
    return sum(ranks[name] * (m + n) if ranks[name] else m * n for name, (m, n) in shapes.items())


def root_loss(decomposition: Decomposition, rank: int, stats: LayerStats | None = None) -> float:
    """Root of the squared ruler at `rank`, times √tokens where `stats` counted them: for the Gram
    ‖X (W − Ŵ)ᵀ‖_F over all calibration tokens, as SVD-LLM V2 and Swift-SVD have it.
    """
    tokens = stats.tokens if stats is not None and stats.tokens else 1
    return (decomposition.tail_error(rank) * tokens) ** 0.5


def share_out(total: Fraction | int, weights: Mapping, caps: Mapping) -> dict[str, Fraction]:
    """`total` in proportion to `weights` (> 0), nobody above their cap; the others get what a cap
    cuts off.

    In exact fractions: they sum to the total, or to the sum of the caps where that is less.
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

    dense: m n.  full: min(m, n).  most: the largest rank that is stored as factors, 0 where none
    saves anything.  least: the smallest rank that the layer may have.  unit: what one rank costs.
    """

    dense: int
    full: int
    most: int
    least: int
    unit: int

    def saved(self, rank: int) -> int:
        """m n − unit · rank as factors; 0 above `most`."""
        return self.dense - rank * self.unit if rank <= self.most else 0


# Name -> fn(shape) -> (largest rank that is stored as factors, numbers that one rank costs).
# "break_even": factors of equal precision.  "remap": Dobi-SVD's storage, half in 8 bits
# (`quantised`); every layer is factorised but one of one row or column, which that never shrinks.
ACCOUNTINGS: dict[str, Callable[[Shape], tuple[int, int]]] = {
    "break_even": lambda shape: (break_even_rank(shape), sum(shape)),
    "remap": lambda shape: (min(shape) if min(shape) > 1 else 0, max(shape)),
}


def check_share(**given) -> None:
    """Raises ValueError naming the first argument that is no number from 0 to 1."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} = {value!r}: give a number from 0 to 1")


def costs_of(
    shapes: Mapping[str, Shape], accounting: str = "break_even", floor: float = 0.0
) -> dict[str, Cost]:
    """Layer -> what its ranks cost, with least = max(1, ⌈floor · most⌉).  Raises ValueError for a
    bad accounting or floor.
    """
    check_choice("accounting", accounting, ACCOUNTINGS)
    check_share(floor=floor)
    costs = {}
    for name, shape in shapes.items():
        most, unit = ACCOUNTINGS[accounting](shape)
        least = max(1, math.ceil(Fraction(str(floor)) * most))
        costs[name] = Cost(math.prod(shape), min(shape), most, least, unit)
    return costs
