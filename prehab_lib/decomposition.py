"""One kernel for every ruler: min ‖P (W − Ŵ) Q‖_F over rank Ŵ ≤ r, solved once per layer for all ranks.

The solution is Ŵ = P⁻¹ U_r U_rᵀ P W with U_r the top left singular vectors of P W Q.  So Q is never inverted, and a singular
Gram is no failure.  Source: digest of Table I; for P = I it is SVD-LLM's whitened truncation, SVD-LLM V2's, and Swift-SVD's
projection of the outputs, which are one map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prehab_lib.factors import Factors
from prehab_lib.roots import checked_gram
from prehab_lib.ruler import COLUMNS, Weighting, by_gram, by_identity, by_root, energy, moment

LEAST = 4096  # times eps σ₁²: what stands out is turned by less than 1 / LEAST

__all__ = ["Decomposition", "Weighting", "factorise"]


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


def factorise(W: Tensor, ruler: Weighting, dtype: torch.dtype | None = None) -> Decomposition:
    """The decomposition of W (m, n) under a ruler, on the device of W; dtype: None is that of W.

    The smaller side is factorised, p = min(m, n): a tall W is first made square, W = Q R with R from Cholesky's factor of
    Wᵀ W; then one eigendecomposition of the p × p moment of P W Q, about 9 p³ + 2 p² n + p n² + 2 m n p operations, and
    m n p more where m > n.  No SVD, no inverse.  The eigendecomposition is repeated on the remainder only where P W Q is
    singular to working precision.

    A weight with n > 2 m takes a Gram as it is: its root would cost n³ / 3 operations and more memory than the weight and
    its factors.  Squares then are exact to float64's eps times the largest, so what carries less than √(n eps) of sigma[0]
    counts as unseen (sigma = 0) and follows in the order of the weights alone.

    Memory beside W, the Gram and the result: with P = I, W in `dtype` (if it is in another) until the moment is made, then
    LAPACK's workspace of 2 p² numbers beside the moment.
    Raises ValueError for a weight that is no finite matrix, or a ruler of another shape.
    """
    dtype = dtype or W.dtype
    _check(W, ruler)
    PW = W if ruler.left is None else ruler.apply_left(W.to(dtype))
    rows, lift = (PW, ruler.undo_left) if W.shape[0] <= W.shape[1] else _square(W, PW, ruler, dtype)
    U, right, sigma = _principal(rows, ruler, dtype)
    del rows, PW
    return Decomposition(lift(U), right, sigma.cummin(0).values)


def _principal(B: Tensor, ruler: Weighting, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """U (k, k) orthonormal, Uᵀ B (k, n), and what each of its rows carries (k,), for B (k, n), k ≤ n, of any float dtype."""
    view, floor = _view(ruler, *B.shape)
    U, B, seen, carried = _resolved(None, B, 0, view, floor, dtype)
    if seen < len(B):  # what the ruler cannot see follows in the order of the weights
        U, B, _, _ = _resolved(U, B, seen, by_identity, None, dtype)
    if len(carried) < len(B) or seen < len(B):
        carried = energy(view(B)).sqrt()
        if floor is not None:
            carried[seen:] = 0
    return U, B, carried.to(dtype)


def _view(ruler: Weighting, k: int, n: int) -> tuple[Callable, Callable | None]:
    """How the ruler looks at k rows of n numbers, and what it takes for noise in them (None: round-off alone)."""
    if ruler.gram is not None and n > 2 * k:
        G = checked_gram(ruler.gram, average=False)
        noise = (n * torch.finfo(G.dtype).eps * torch.linalg.matrix_norm(G)).sqrt()
        return partial(by_gram, G=G), lambda rows: noise.to(rows) * torch.linalg.vector_norm(rows, dim=1)
    Q = ruler.right
    return (by_identity if Q is None else partial(by_root, Q=Q)), None


def _resolved(
    U: Tensor | None, B: Tensor, done: int, view: Callable, floor: Callable | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, int, Tensor]:
    """U and B with their rows from `done` on turned to principal ones, how many stand out, and what those of the last turn carry.

    Squaring hides what lies below √eps, and turns a direction that carries σ by up to eps σ₁² / σ²: the remainder is turned
    again until nothing more stands out.
    """
    k, n = B.shape
    noise = None
    while done < k:
        K = moment(view(B[done:].to(dtype)))
        hidden = (max(n, LEAST) * torch.finfo(K.dtype).eps) ** 0.5
        U, B = _turned(U, B, _eigenvectors(K).to(dtype), done)
        carried = energy(view(B[done:])).sqrt()
        if noise is None:
            total = carried.norm() if done == 0 else torch.linalg.vector_norm(B)
            noise = total * n * torch.finfo(dtype).eps
        clear = (carried > carried.max() * hidden) & (carried > noise)
        if floor is not None:
            clear &= carried > floor(B[done:])
        order = torch.argsort(torch.where(clear, carried, -1), descending=True, stable=True)
        if (order.diff() != 1).any():
            _reorder(U, B, order, done)
        carried, found = carried[order], int(clear.sum())
        done += found
        if not found:
            break
    return U, B, done, carried


def _eigenvectors(K: Tensor) -> Tensor:
    """Those of a symmetric K (k, k), largest eigenvalue first.  K is lost: its memory takes them."""
    torch.linalg.eigh(K, out=(K.new_empty(len(K)), K))
    return K.flip(1)


def _turned(U: Tensor | None, B: Tensor, Q: Tensor, done: int) -> tuple[Tensor, Tensor]:
    """The basis U, None for the identity, and the rows B with the last of them turned by Q, in Q's dtype."""
    if U is None:
        turned = Q.new_empty(B.shape)
        for start in range(0, B.shape[1], COLUMNS):
            columns = slice(start, start + COLUMNS)
            turned[:, columns] = Q.T @ B[:, columns].to(Q)
        return Q, turned
    U[:, done:] = U[:, done:] @ Q
    for part in B.split(COLUMNS, dim=1):
        part[done:] = Q.T @ part[done:]
    return U, B


def _reorder(U: Tensor, B: Tensor, order: Tensor, done: int) -> None:
    """Columns of U and rows of B from `done` on in another order, in place."""
    U[:, done:] = U[:, done + order]
    for part in B.split(COLUMNS, dim=1):
        part[done:] = part[done + order]


def _square(W: Tensor, PW: Tensor, ruler: Weighting, dtype: torch.dtype) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """R (n, n) with P W = Q R, Q (m, n) orthonormal, and U -> P⁻¹ Q U, which may take U's memory, for m > n.

    Cholesky's factor of (P W)ᵀ P W, summed in float64, where its pivots say that a condition squared costs less than √eps;
    then P⁻¹ Q U = W R⁻¹ U, and full rank gives W back to eps times its condition.  Householder's Q R elsewhere.
    """
    S = PW.new_zeros(W.shape[1], W.shape[1], dtype=torch.float64)
    for part in PW.split(COLUMNS):
        part = part.double()
        S.addmm_(part.T, part)
    R, failed = torch.linalg.cholesky_ex(S, upper=True)
    pivots = R.diagonal()
    least = max(torch.finfo(torch.float64).eps ** 0.25, torch.finfo(dtype).eps ** 0.5)
    if failed or not pivots.min() > least * pivots.max():
        Q, R = torch.linalg.qr(PW.to(dtype))
        return R, lambda U: ruler.undo_left(Q @ U)
    R = R.to(dtype)

    def lift(U: Tensor) -> Tensor:
        torch.linalg.solve_triangular(R, U, upper=True, out=U)
        left = U.new_empty(W.shape)
        for target, part in zip(left.split(COLUMNS), W.split(COLUMNS), strict=True):
            target.copy_(part.to(U) @ U)
        return left

    return R, lift


def _check(W: Tensor, ruler: Weighting) -> None:
    if W.ndim != 2:
        raise ValueError(f"a weight is a matrix (m, n), not a tensor of shape {tuple(W.shape)}")
    if not torch.isfinite(torch.stack(torch.aminmax(W))).all():
        raise ValueError("the weight has NaN or infinite entries")
    ruler.check_shape(*W.shape)
