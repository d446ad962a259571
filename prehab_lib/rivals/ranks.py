"""What the allocations share: shapes, groups of one kind of layer, the loss of a rank, and fair
shares of a pool.
"""

import re
from collections.abc import Mapping
from fractions import Fraction

from prehab_lib.budget import break_even_rank
from prehab_lib.decomposition import Decomposition
from prehab_lib.stats import LayerStats


def shape_of(decomposition: Decomposition) -> tuple[int, int]:
    """(m, n) of the weight behind a decomposition."""
    return tuple(decomposition.shape)


def compressible(decompositions: Mapping[str, Decomposition]) -> dict[str, tuple[int, int]]:
    """Layer -> (m, n), for the layers in which some rank saves parameters.

    In the order of their names, so that no answer depends on the order of the dict that came in.
    """
    shapes = {name: shape_of(decompositions[name]) for name in sorted(decompositions)}
    return {name: shape for name, shape in shapes.items() if break_even_rank(shape)}


def groups_of_one_type(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """Layers that play one role in the blocks of a model: same name but for its numbers, same
    shape.
    """
    groups: dict[tuple, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault((re.sub(r"(?<![^.])\d+(?![^.])", "*", name), shape), []).append(name)
    return list(groups.values())


def parameters(shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int | None]) -> int:
    """Numbers stored by these layers at these ranks: r (m + n), and m n where the layer stays
    dense.
    """
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
    """`total` in proportion to `weights` (> 0), nobody above their cap; what a cap cuts off goes to
    the others.

    In exact fractions: shares sum to the total (to the sum of the caps where that is less), equal
    weights get equal shares.
    """
    open_to, shares, left = (
        {name: Fraction(weight) for name, weight in weights.items()},
        {},
        Fraction(total),
    )
    while open_to:
        unit = left / sum(open_to.values())
        full = [name for name, weight in open_to.items() if unit * weight >= caps[name]]
        if not full:
            return shares | {name: unit * weight for name, weight in open_to.items()}
        for name in full:
            shares[name] = Fraction(caps[name])
            left -= shares[name]
            del open_to[name]
    return shares
