"""SVD-LLM V2's ratios: among layers of one type, those that would lose most keep most.

Source: SVD-LLM V2 (arXiv 2503.12340), repaired.  As printed, 1 / log(L_i) has a pole at 1 and
another sign below it, and the fractions may pass 1; here they are clipped to what rank 1 removes,
and the rest goes to the other layers.  What whole ranks leave of the budget is handed back.
"""

import math
from fractions import Fraction

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.rivals import shared
from prehab_lib.rivals.shared import Cuts, Ranks, Stats


def grouped(decompositions: Cuts, removed: float, *, stats: Stats = None, **given) -> Ranks:
    """Each type of layer keeps the budget; inside it, layer i loses a fraction in proportion to 1 /
    log(e + L_i), with L_i its loss at the uniform rank (`root_loss`).

    Ranks are rounded down; what that leaves goes back one rank a layer, to the largest remainders
    first.  No rank passes break-even.  stats: only their token counts are used; without them the
    loss is per token.  Either way the answer depends on the scale of the ruler.  Raises ValueError
    for a bad `removed`.
    """
    fractions = removed_fractions(decompositions, removed, stats)
    shapes = {name: tuple(decompositions[name].shape) for name in fractions}
    ranks = {name: rank_for(shapes[name], share) for name, share in fractions.items()}
    left = (1 - check_removed(removed)) * sum(m * n for m, n in shapes.values())
    left -= shared.parameters(shapes, ranks)
    remainders = []  # of a rank that rounding took; of equals the first name has the first turn
    for name, (m, n) in shapes.items():
        remainders.append((ranks[name] - (1 - fractions[name]) * m * n / (m + n), name))
    for _, name in sorted(remainders):
        unit = sum(shapes[name])
        if unit <= left and ranks[name] < break_even_rank(shapes[name]):
            ranks[name] += 1
            left -= unit
    return {name: ranks.get(name) for name in decompositions}


def removed_fractions(
    decompositions: Cuts, removed: float, stats: Stats | None = None
) -> dict[str, Fraction]:
    """Layer -> fraction of its parameters to remove, before rounding; the mean is `removed`."""
    share = check_removed(removed)
    shapes = shared.compressible(decompositions)
    fractions: dict[str, Fraction] = {}
    for group in shared.groups_of_one_type(shapes):
        m, n = shapes[group[0]]
        rank = rank_for((m, n), removed)
        weights = {}
        for name in group:
            loss = shared.root_loss(decompositions[name], rank, (stats or {}).get(name))
            weights[name] = 1 / math.log(math.e + loss)
        caps = dict.fromkeys(group, 1 - Fraction(m + n, m * n))
        fractions |= shared.share_out(len(group) * share, weights, caps)
    return fractions
