"""Decompositions made when somebody looks: a large model's must never exist all at once.

All of a 7B model's in float64 take about 180 GB, one layer's less than 1 GB.  Singular values
stay after the first look; factors while there is room, and are made again with the same bits.
"""

from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import Factors
from prehab_lib.layers import linear_layers
from prehab_lib.scale import lean
from prehab_lib.weightings import Stats, by_layer

KEEP = 2 * 2**30  # bytes of factors kept for a second look
Make = Callable[..., Decomposition]


class Shelf:
    """Keeps what was made last, up to `keep` bytes together; always nothing for keep = 0."""

    def __init__(self, keep: int = KEEP):
        self.keep = keep
        self.kept: dict[object, Decomposition] = {}  # the latest last

    def get(self, key: object, make: Callable[[], Decomposition]) -> Decomposition:
        decomposition = self.kept.pop(key) if key in self.kept else make()
        self.kept[key] = decomposition
        while sum(c.left.nbytes + c.right.nbytes for c in self.kept.values()) > self.keep:
            del self.kept[next(iter(self.kept))]
        return decomposition


class LazyDecomposition:
    """Stands where a `Decomposition` stands: `shape` costs nothing, everything else makes it.

    make(most=None) gives its first `most` components, all for None, the same at every call.
    shape: (m, n) of the weight.  weight: the tensor that `make` factorises.
    """

    def __init__(self, make: Make, shape: tuple, shelf: Shelf, weight: Tensor | None = None):
        self.make, self.shape, self.shelf, self.weight = make, tuple(shape), shelf, weight
        self._sigma: Tensor | None = None
        self._truncated = False
        self.ruler = ""  # as `Decomposition.ruler`

    def whole(self) -> Decomposition:
        """The decomposition itself: kept one, or made now."""
        decomposition = self.shelf.get(self, self.make)
        self._sigma = decomposition.sigma
        return decomposition

    @property
    def left(self) -> Tensor:
        return self.whole().left

    @property
    def right(self) -> Tensor:
        return self.whole().right

    @property
    def sigma(self) -> Tensor:
        return self.whole().sigma if self._sigma is None else self._sigma

    def truncate(self, rank: int) -> Factors:
        """As `Decomposition.truncate`; nothing behind `rank` is made or kept the first time."""
        if self in self.shelf.kept or self._truncated:  # surgery comes once, a search often
            return self.whole().truncate(rank)
        self._truncated = True
        return self.make(most=rank).truncate(rank)

    def tail_error(self, rank: int) -> float:
        return float(self.sigma[rank:].square().sum())

    def is_of(self, W: Tensor) -> bool:
        """As `Decomposition.is_of`; of one that is not made yet, whether it will be made of W."""
        unseen = self._sigma is None and self not in self.shelf.kept
        return (unseen and W is self.weight) or self.whole().is_of(W)


def decompose_lazily(
    model: nn.Module,
    stats: Stats,
    weighting: str = "gram",
    layers: Iterable[str] | None = None,
    keep: int = KEEP,
    kernel: Make = lean.factorise,
    **options,
) -> dict[str, LazyDecomposition]:
    """As `weightings.decompose_all` with that kernel, to the last bit, but made at a look.

    keep: bytes of factors that stay.  The weights must stay as they are while the answer is in use.
    """
    modules = linear_layers(model, list(stats) if layers is None and stats else layers)
    shelf, make = Shelf(keep), by_layer(stats, weighting, kernel=kernel, **options)
    lazy = {}
    for name, module in modules.items():
        W = module.weight
        lazy[name] = LazyDecomposition(partial(make, name, module), W.shape, shelf, W)
        lazy[name].ruler = weighting if isinstance(weighting, str) else ""
    return lazy
