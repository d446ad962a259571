"""One kernel for every ruler: min ‖P (W − Ŵ) Q‖_F over rank Ŵ ≤ r, solved once per layer for all ranks.

A ruler is a `Weighting(left=P, right=Q)`; the solution is Ŵ = P⁻¹ U_r U_rᵀ P W with U_r the top left singular vectors of
P W Q.  So Q is never inverted, and a singular Gram is no failure.  Source: digest of Table I; for P = I it is SVD-LLM's
whitened truncation, SVD-LLM V2's, and Swift-SVD's projection of the outputs, which are one map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.factors import Factors


@dataclass(frozen=True)
class Weighting:
    """The ruler ‖P E Q‖_F² for an error E (m, n): left P (m, m), invertible; right Q (n, n), any; None is the identity."""

    left: Tensor | None = None
    right: Tensor | None = None

    def apply(self, E: Tensor) -> Tensor:
        """P E Q, (m, n)."""
        E = self.apply_left(E)
        return E if self.right is None else E @ self.right.to(E)

    def apply_left(self, E: Tensor) -> Tensor:
        """P E, (m, n)."""
        return E if self.left is None else self.left.to(E) @ E

    def undo_left(self, U: Tensor) -> Tensor:
        """P⁻¹ U, by a solve."""
        return U if self.left is None else torch.linalg.solve(self.left.to(U), U)


@dataclass(frozen=True)
class Decomposition:
    """W = left · right, ordered so that the first r columns and rows are the best rank-r answer of one ruler.

    left (m, k), right (k, n), sigma (k,) descending, k = min(m, n).  sigma[i] is what component i carries under the ruler:
    dropping all from r on costs exactly Σ_{i≥r} sigma[i]² (the squared ruler).
    """

    left: Tensor
    right: Tensor
    sigma: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return self.left.shape[0], self.right.shape[1]

    def truncate(self, rank: int) -> Factors:
        """The best factors of that rank, U (m, rank) and V (rank, n).  Raises ValueError outside 1 … k."""
        if not 1 <= rank <= len(self.sigma):
            raise ValueError(f"rank = {rank}: this layer allows 1 to {len(self.sigma)}")
        return Factors(self.left[:, :rank], self.right[:rank])

    def tail_error(self, rank: int) -> float:
        """The squared ruler after `truncate(rank)`, predicted from the singular values alone."""
        return float(self.sigma[rank:].square().sum())


def factorise(W: Tensor, ruler: Weighting) -> Decomposition:
    """The decomposition of W (m, n) under a ruler, in the dtype and on the device of W.

    The smaller side is factorised: an eigendecomposition of the p × p Gram of P W Q, p = min(m, n), about 9 p³ + 4 p m n
    operations.  It is repeated on the remainder only where P W Q is singular to working precision.
    Raises ValueError for a weight that is no finite matrix, or a ruler of another shape.
    """
    _check(W, ruler)
    PW, PWQ = ruler.apply_left(W), ruler.apply(W)  # (m, n), (m, n)
    # Squaring hides what lies below √eps: look at the remainder until it is empty, then at what the ruler cannot see.
    U = W.new_zeros(W.shape[0], 0)
    for target in (PWQ, PW):
        found = -1
        while found < U.shape[1] < min(W.shape):
            found = U.shape[1]
            U = torch.cat([U, _new_left_vectors(target, U)], dim=1)
    U = nn.functional.pad(U, (0, min(W.shape) - U.shape[1]))  # a rank-deficient W: nothing is left to carry
    sigma = torch.linalg.vector_norm(U.T @ PWQ, dim=1)
    return Decomposition(left=ruler.undo_left(U), right=U.T @ PW, sigma=sigma.cummin(0).values)


def _new_left_vectors(target: Tensor, U: Tensor) -> Tensor:
    """Left singular vectors of what `target` (m, n) has outside the span of U, largest first, those above round-off."""
    rest = target - U @ (U.T @ target)
    m, n = rest.shape
    if m <= n:
        found = torch.linalg.eigh(rest @ rest.T).eigenvectors.flip(1)
    else:
        found = rest @ torch.linalg.eigh(rest.T @ rest).eigenvectors.flip(1)
    found = torch.linalg.qr(found).Q
    carried = torch.linalg.vector_norm(found.T @ rest, dim=1)
    eps = torch.finfo(rest.dtype).eps
    resolved = carried > carried.max() * (max(m, n) * eps) ** 0.5
    above_noise = carried > torch.linalg.matrix_norm(target) * max(m, n) * eps
    keep = (resolved & above_noise).nonzero().flatten()[: min(m, n) - U.shape[1]]
    keep = keep[torch.argsort(carried[keep], descending=True, stable=True)]
    found = found[:, keep] - U @ (U.T @ found[:, keep])
    return torch.linalg.qr(found).Q


def _check(W: Tensor, ruler: Weighting) -> None:
    if W.ndim != 2:
        raise ValueError(f"a weight is a matrix (m, n), not a tensor of shape {tuple(W.shape)}")
    if not torch.isfinite(W).all():
        raise ValueError("the weight has NaN or infinite entries")
    for side, root, size in (("left", ruler.left, W.shape[0]), ("right", ruler.right, W.shape[1])):
        if root is not None and root.shape != (size, size):
            raise ValueError(f"the {side} root has shape {tuple(root.shape)} and the weight {tuple(W.shape)}")
