"""One kernel for every ruler: min ‖P (W − Ŵ) Q‖_F over rank Ŵ ≤ r, solved once for all ranks r.

The solution is Ŵ = P⁻¹ U_r U_rᵀ P W with U_r the top left singular vectors of P W Q.  So Q is never
inverted, and a singular Gram is no failure.  Source: Table I; for P = I it is SVD-LLM's
whitened truncation, SVD-LLM V2's, and Swift-SVD's projection of the outputs, which are one map.

This plain kernel is the default; `scale.lean` has one with less memory for large models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prehab_lib.factors import Factors
from prehab_lib.inputs import check_whole
from prehab_lib.roots import exactly
from prehab_lib.statistics.cores import one_core

Root = Tensor | Callable[[], Tensor] | None


class Weighting:
    """The ruler ‖P E Q‖_F² for an error E (m, n): left P (m, m), invertible; right Q (n, n), any.

    None stands for the identity.  gram: Q Qᵀ (n, n) where it is known; `right` may then be a
    function that makes Q when somebody asks for it.
    """

    def __init__(self, left: Tensor | None = None, right: Root = None, gram: Tensor | None = None):
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


@dataclass(frozen=True)
class Decomposition:
    """W = left · right: the first r columns and rows are the best rank-r answer of one ruler.

    left (m, k), right (k, n), sigma (k,) descending, k = min(m, n).  Dropping all components from r
    on costs exactly Σ_{i≥r} sigma[i]² (the squared ruler).  Where only the first components were
    made, k counts those, and rest is what the others carry, squared.  ruler: its name, "" unknown.
    """

    left: Tensor
    right: Tensor
    sigma: Tensor
    rest: float = 0.0
    ruler: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return self.left.shape[0], self.right.shape[1]

    def truncate(self, rank: int) -> Factors:
        """The best factors, U (m, rank) and V (rank, n).  Raises ValueError outside 1 … k."""
        if not 1 <= rank <= len(self.sigma):
            verb = "has" if len(self.sigma) < min(self.shape) else "allows"
            raise ValueError(f"rank = {rank}: this layer {verb} 1 to {len(self.sigma)}")
        return Factors(self.left[:, :rank], self.right[:rank])

    def tail_error(self, rank: int) -> float:
        """The squared ruler after `truncate(rank)`, from the singular values alone."""
        return float(self.sigma[rank:].square().sum()) + self.rest

    def is_of(self, W: Tensor) -> bool:
        """Whether left · right is W (m, n), seen by one vector: W whole would cost too much."""
        W = W.detach().to(self.left)
        probe = torch.cos(torch.arange(W.shape[1], dtype=W.dtype, device=W.device))
        tolerance = 1e-6 if W.dtype == torch.float64 else 1e-4
        gap = W @ probe - self.left @ (self.right @ probe)
        return bool(gap.norm() <= tolerance * W.norm())


@exactly()
@one_core
def factorise(
    W: Tensor, ruler: Weighting, dtype: torch.dtype | None = None, most: int | None = None
) -> Decomposition:
    """The decomposition of W (m, n) under a ruler, on the device of W; dtype: None is that of W.

    most: components of the answer, the first; None for all.  Full rank gives W back, also where the
    Gram is singular: what the ruler cannot see (sigma = 0) comes last, in the order of the weights.
    Raises ValueError for a weight that is no finite matrix, another ruler's shape, or `most` < 1.
    """
    check_kernel_input(W, ruler, most)
    PW = ruler.apply_left(W.to(dtype or W.dtype))
    basis = None
    if W.shape[0] > W.shape[1]:  # make a tall matrix square, so that U below spans all of it
        basis, PW = torch.linalg.qr(PW)  # (m, n), (n, n)
    PWQ = PW if ruler.right is None else PW @ ruler.right.to(PW)
    if W.shape[0] < W.shape[1]:  # a wide one too: its right vectors are not needed
        PWQ = torch.linalg.qr(PWQ.T, mode="r").R.T  # (m, m)
    U, sigma, _ = torch.linalg.svd(PWQ)  # (k, k), (k,)
    visible = int((sigma > max(W.shape) * torch.finfo(sigma.dtype).eps * sigma[0]).sum())
    if visible < len(sigma):  # the others are known as a space only: put them in the weights' order
        others = U[:, visible:]
        U[:, visible:] = others @ torch.linalg.svd(others.T @ PW, full_matrices=False).U
        sigma[visible:] = 0
    left = ruler.undo_left(U if basis is None else basis @ U)  # (m, k)
    right = U.T @ PW  # (k, n)
    rest = 0.0 if most is None else float(sigma[most:].square().sum())
    return Decomposition(left[:, :most], right[:most], sigma[:most], rest)


def check_kernel_input(W: Tensor, ruler: Weighting, most: int | None) -> None:
    """Raises ValueError as `factorise` says."""
    if W.ndim != 2:
        raise ValueError(f"a weight is a matrix (m, n), not a tensor of shape {tuple(W.shape)}")
    if W.is_complex() or W.element_size() < 2:
        raise ValueError(f"a weight of {W.dtype} is not factorised: convert it to float32 first")
    if not torch.isfinite(torch.stack(torch.aminmax(W))).all():
        raise ValueError("the weight has NaN or infinite entries")
    right = ruler.right if ruler.gram is None else ruler.gram  # the root of a Gram may cost much
    for side, root, size in (("left", ruler.left, W.shape[0]), ("right", right, W.shape[1])):
        if root is not None and root.shape != (size, size):
            shapes = f"shape {tuple(root.shape)} and the weight {tuple(W.shape)}"
            raise ValueError(f"the {side} root has {shapes}")
    if most is not None:
        check_whole(1, most=most)
