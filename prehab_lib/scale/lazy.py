"""Decompositions that are made when somebody looks, so that a large model's never exist all at
once.

All of a 7B model's in float64 take about 180 GB, one layer's less than 1 GB.  A `LazyDecomposition`
knows its shape at once; its singular values stay after the first look; its factors stay while there
is room for them and are made again otherwise, with the same bits.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import Factors

KEEP = 2 * 2**30  # bytes of factors kept for a second look


class Shelf:
    """Keeps what was made last, up to `keep` bytes together; always nothing for keep = 0."""

    def __init__(self, keep: int = KEEP):
        self.keep = keep
        self.kept: OrderedDict[object, Decomposition] = OrderedDict()

    def get(self, key: object, make: Callable[[], Decomposition]) -> Decomposition:
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        made = make()
        self.kept[key] = made
        while self.kept and sum(map(_bytes, self.kept.values())) > self.keep:
            self.kept.popitem(last=False)
        return made

    def drop(self, key: object) -> Decomposition | None:
        return self.kept.pop(key, None)


class LazyDecomposition:
    """Stands where a `Decomposition` stands: `shape` costs nothing, everything else makes it.

    make: (most=None) -> Decomposition of its first `most` components, all for None, the same at
    every call. shape: (m, n) of the weight.
    """

    def __init__(self, make: Callable[..., Decomposition], shape: tuple[int, int], shelf: Shelf):
        self.make, self.shape, self.shelf = make, shape, shelf
        self._sigma: Tensor | None = None

    def whole(self) -> Decomposition:
        """The decomposition itself: kept one, or made now."""
        found = self.shelf.get(self, self.make)
        self._sigma = found.sigma
        return found

    def last_look(self, rank: int) -> Decomposition:
        """The first `rank` components at least, for somebody after whom nobody looks again soon:
        nothing is kept.
        """
        found = self.shelf.drop(self)
        return self.make(most=rank) if found is None else found

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
        return self.whole().truncate(rank)

    def tail_error(self, rank: int) -> float:
        return float(self.sigma[rank:].square().sum())


def last_look(found: "Decomposition | LazyDecomposition", rank: int) -> Decomposition:
    """As `LazyDecomposition.last_look`; one that is made already is what it is."""
    return found.last_look(rank) if isinstance(found, LazyDecomposition) else found


def _bytes(found: Decomposition) -> int:
    return sum(
        part.numel() * part.element_size() for part in (found.left, found.right, found.sigma)
    )
