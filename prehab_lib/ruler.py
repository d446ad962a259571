"""What a ruler is: two matrices around an error, and what it says about rows without ever holding
all of their images.

‖P E Q‖_F² needs only the moment Q Qᵀ of its right side, so a ruler may be given by a Gram; its root
is made when asked for.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

COLUMNS = 512  # of a product that live at a time, and of a weight that are in another dtype for it


class Weighting:
    """The ruler ‖P E Q‖_F² for an error E (m, n): left P (m, m), invertible; right Q (n, n), any;
    None is the identity.

    gram: Q Qᵀ (n, n) where it is known; `right` may then be a function that makes Q.
    """

    def __init__(
        self,
        left: Tensor | None = None,
        right: Tensor | Callable[[], Tensor] | None = None,
        gram: Tensor | None = None,
    ):
        self.left, self._right, self.gram = left, right, gram

    @property
    def right(self) -> Tensor | None:
        return self._right() if callable(self._right) else self._right

    def apply(self, E: Tensor) -> Tensor:
        """P E Q, (m, n)."""
        E, Q = self.apply_left(E), self.right
        return E if Q is None else E @ Q.to(E)

    def apply_left(self, E: Tensor) -> Tensor:
        """P E, (m, n)."""
        return E if self.left is None else self.left.to(E) @ E

    def undo_left(self, U: Tensor) -> Tensor:
        """P⁻¹ U, by a solve."""
        return U if self.left is None else torch.linalg.solve(self.left.to(U), U)

    def check_shape(self, m: int, n: int) -> None:
        """Raises ValueError where the ruler is of another shape than a weight (m, n)."""
        right = self.right if self.gram is None else self.gram
        for side, root, size in (("left", self.left, m), ("right", right, n)):
            if root is not None and root.shape != (size, size):
                raise ValueError(
                    f"the {side} root has shape {tuple(root.shape)} and the weight {(m, n)}"
                )


Pairs = Iterator[tuple[Tensor, Tensor]]


def moment(pairs: Pairs) -> Tensor:
    """B Q Qᵀ Bᵀ (k, k) of the rows B (k, n) behind these pairs: the symmetric part of Σ X Yᵀ."""
    K = None
    for X, Y in pairs:
        K = X @ Y.T if K is None else K.addmm_(X, Y.T)
        del X, Y  # or they would live while the next pair is made
    return (K + K.T).div_(2)


def energy(pairs: Pairs) -> Tensor:
    """‖b_i Q‖² of each row (k,): the diagonal of the moment, by n numbers a row."""
    total = 0.0
    for X, Y in pairs:
        total = total + (X * Y).sum(1)
        del X, Y
    return total.clamp_min(0)


def by_identity(B: Tensor, dtype: torch.dtype) -> Pairs:
    """Pairs of the ruler that leaves rows as they are, in `dtype`."""
    for part in B.split(COLUMNS, dim=1):
        part = part.to(dtype)
        yield part, part
        del part


def by_root(B: Tensor, Q: Tensor, dtype: torch.dtype) -> Pairs:
    """Pairs (columns of B Q, the same), in `dtype`.  Of a lower triangular Q only the triangle is
    multiplied.
    """
    B = B.to(dtype)
    for start in range(0, Q.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        first = 0 if Q[:start, columns].any() else start
        part = B[:, first:] @ Q[first:, columns].to(B)
        yield part, part
        del part


def by_gram(B: Tensor, G: Tensor) -> Pairs:
    """Pairs without a root, in the Gram's dtype: G = T + Tᵀ, T its lower triangle with half the
    diagonal, so B G Bᵀ = Σ X Yᵀ with X = 2 B T, Y = B.

    Half the products of B G, and G is read below its diagonal only.
    """
    places = [slice(start, start + COLUMNS) for start in range(0, len(G), COLUMNS)]
    for number, columns in enumerate(places):
        corner, Y = G[columns, columns].tril(), B[:, columns].to(G)
        X = Y @ corner.add_(corner.tril(-1).T)
        for below in places[number + 1 :]:
            X.addmm_(B[:, below].to(G), G[below, columns], alpha=2)
        yield X, Y
        del X, Y, corner
