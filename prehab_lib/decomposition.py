"""One kernel for every ruler: min ‖P (W − Ŵ) Q‖_F over rank Ŵ ≤ r, solved once per layer for all
ranks.

The solution is Ŵ = P⁻¹ U_r U_rᵀ P W with U_r the top left singular vectors of P W Q.  So Q is never
inverted, and a singular Gram is no failure.  Source: digest of Table I; for P = I it is SVD-LLM's
whitened truncation, SVD-LLM V2's, and Swift-SVD's projection of the outputs, which are one map.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prehab_lib.factors import Factors
from prehab_lib.inputs import check_whole
from prehab_lib.roots import checked_gram
from prehab_lib.ruler import COLUMNS, Weighting, by_gram, by_identity, by_root, energy, moment
from prehab_lib.scale.memory import give_back

WORTH = (
    2**23
)  # bytes of a moment from which on giving back takes at most 1 % of the time of its eigenvectors
LEAST = 4096  # times eps σ₁²: what stands out is turned by less than 1 / LEAST

__all__ = ["Decomposition", "Weighting", "factorise"]


@dataclass(frozen=True)
class Decomposition:
    """W = left · right, ordered so that the first r columns and rows are the best rank-r answer of
    one ruler.

    left (m, k), right (k, n), sigma (k,) descending, k = min(m, n).  sigma[i] is what component i
    carries under the ruler: dropping all from r on costs exactly Σ_{i≥r} sigma[i]² (the squared
    ruler).  Where only the first were made, k counts those, and rest is what the others carry,
    squared.
    """

    left: Tensor
    right: Tensor
    sigma: Tensor
    rest: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the weight."""
        return self.left.shape[0], self.right.shape[1]

    def truncate(self, rank: int) -> Factors:
        """The best factors of that rank, U (m, rank) and V (rank, n).  Raises ValueError outside 1
        … k.
        """
        if not 1 <= rank <= len(self.sigma):
            made = "has" if len(self.sigma) < min(self.shape) else "allows"
            raise ValueError(f"rank = {rank}: this layer {made} 1 to {len(self.sigma)}")
        return Factors(self.left[:, :rank], self.right[:rank])

    def tail_error(self, rank: int) -> float:
        """The squared ruler after `truncate(rank)`, predicted from the singular values alone."""
        return float(self.sigma[rank:].square().sum()) + self.rest


def factorise(
    W: Tensor, ruler: Weighting, dtype: torch.dtype | None = None, most: int | None = None
) -> Decomposition:
    """The decomposition of W (m, n) under a ruler, on the device of W; dtype: None is that of W.

    most: components that the answer has, the first, to the same bits; None for all.  It saves
    memory, not time.

    The smaller side is factorised, p = min(m, n): a tall W is first made square, W = Q R with R
    from Cholesky's factor of Wᵀ W; then one eigendecomposition of the p × p moment of P W Q, about
    9 p³ + 2 p² n + p n² + 2 m n p operations, and m n p more where m > n.  No SVD, no inverse.  The
    eigendecomposition is repeated on the remainder only where P W Q is singular to working
    precision.

    A weight with n > 2 m takes a Gram as it is: its root would cost n³ / 3 operations and more
    memory than the weight and its factors.  Squares then are exact to float64's eps times the
    largest, so what carries less than √(n eps) of sigma[0] counts as unseen (sigma = 0) and follows
    in the order of the weights alone.

    Memory beside W and the Gram, with P = I and n > 2 m: LAPACK's workspace of 2 p² numbers beside
    the moment of p²; then the result, and the p² eigenvectors where it has fewer.  With n ≤ 2 m the
    root besides, and W in `dtype` or its R. Raises ValueError for a weight that is no finite
    matrix, a ruler of another shape, or `most` below 1.
    """
    _check(W, ruler)
    dtype, most = dtype or W.dtype, min(W.shape) if most is None else most
    check_whole(1, most=most)
    PW = W if ruler.left is None else ruler.apply_left(W.to(dtype))
    rows, lift = (PW, None) if W.shape[0] <= W.shape[1] else _square(W, PW, ruler, dtype)
    U, right, sigma, rest = _principal(rows, ruler, dtype, most)
    del rows, PW
    left = lift(U, most) if lift else ruler.undo_left(U)[:, :most]
    return Decomposition(left, right, sigma.cummin(0).values, rest)


def _principal(
    B: Tensor, ruler: Weighting, dtype: torch.dtype, most: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """U (k, k) orthonormal for B (k, n), k ≤ n, of any float dtype; of Uᵀ B the first `most` rows,
    what each of them carries (most,), and what the others carry together, squared.
    """
    view, floor = _view(ruler, *B.shape, dtype)
    rows = _Rows(B)
    carried, rest = rows.resolve(view, floor, dtype, most)
    seen = rows.done
    if seen < len(rows.B):  # what the ruler cannot see follows in the order of the weights
        rows.resolve(partial(by_identity, dtype=dtype), None, dtype, len(rows.B))
    if len(carried) < len(rows.B) or seen < len(rows.B):
        carried = energy(view(rows.B)).sqrt()
        if floor is not None:
            carried[seen:] = 0
    rest += float(carried[most:].square().sum())
    return rows.U, rows.B[:most], carried[:most].to(dtype), rest


def _view(ruler: Weighting, k: int, n: int, dtype: torch.dtype) -> tuple[Callable, Callable | None]:
    """How the ruler looks at k rows of n numbers, and what it takes for noise in them (None:
    round-off alone).
    """
    if ruler.gram is not None and n > 2 * k:
        G = checked_gram(ruler.gram, average=False)
        noise = (n * torch.finfo(G.dtype).eps * torch.linalg.matrix_norm(G)).sqrt()
        return partial(
            by_gram, G=G
        ), lambda rows: noise.to(rows) * torch.linalg.vector_norm(rows, dim=1)
    Q = ruler.right
    return partial(by_identity, dtype=dtype) if Q is None else partial(
        by_root, Q=Q, dtype=dtype
    ), None


class _Rows:
    """Rows B (k, n) on their way to principal ones, the way U (k, k), None for the identity, and
    how many are done.
    """

    def __init__(self, B: Tensor):
        self.U: Tensor | None = None
        self.B, self.done = B, 0

    def resolve(
        self, view: Callable, floor: Callable | None, dtype: torch.dtype, most: int
    ) -> tuple[Tensor, float]:
        """Turn the rows that are not done to principal ones; what those of the last turn carry, and
        `rest`.

        Squaring hides what lies below √eps, and turns a direction that carries σ by up to eps σ₁² /
        σ²: the remainder is turned again until nothing more stands out.  Where the first turn
        settles the first `most` rows, B goes on without the others, and what these carry together,
        squared, is `rest`.
        """
        n, noise, rest = self.B.shape[1], None, 0.0
        while self.done < (k := len(self.B)):
            K = moment(view(self.B[self.done :]))
            hidden = (max(n, LEAST) * torch.finfo(K.dtype).eps) ** 0.5
            if noise is None:
                total = (
                    K.trace().clamp_min(0).sqrt()
                    if self.U is None
                    else torch.linalg.vector_norm(self.B)
                )
                noise = total * n * torch.finfo(dtype).eps
            squares, Q = _eigen(K)
            del K
            Q = Q.to(dtype)
            for made in (most, k) if self.U is None and _apart(squares, most) else (k,):
                U, B = self._turned(Q, made)
                carried = energy(view(B[self.done :])).sqrt()
                clear = (carried > carried.max() * hidden) & (carried > noise)
                if floor is not None:
                    clear &= carried > floor(B[self.done :])
                if clear.all():
                    break
            self.U, self.B = U, B
            rest += float(squares[made - self.done :].clamp_min(0).sum())
            order = torch.argsort(torch.where(clear, carried, -1), descending=True, stable=True)
            if (order.diff() != 1).any():
                self._reorder(order)
            carried, found = carried[order], int(clear.sum())
            self.done += found
            if not found:
                break
        return carried, rest

    def _turned(self, Q: Tensor, made: int) -> tuple[Tensor, Tensor]:
        """U, and the first `made` rows of B with those that are not done turned by Q, in its dtype;
        in place from the second turn on.
        """
        U, B, done = self.U, self.B, self.done
        if U is None:
            turned = Q.new_empty(made, B.shape[1])
            for target, part in zip(
                turned.split(COLUMNS, dim=1), B.split(COLUMNS, dim=1), strict=True
            ):
                target.copy_((Q.T @ part.to(Q))[:made])  # all rows, for the same bits
            return Q, turned
        U[:, done:] = U[:, done:] @ Q
        for part in B.split(COLUMNS, dim=1):
            part[done:] = Q.T @ part[done:]
        return U, B

    def _reorder(self, order: Tensor) -> None:
        """The rows that are not done, and their columns of U, in another order, in place."""
        done = self.done
        self.U[:, done:] = self.U[:, done + order]
        for part in self.B.split(COLUMNS, dim=1):
            part[done:] = part[done + order]


def _eigen(K: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric K (k, k), the largest first.  K is lost: its
    memory takes them.
    """
    if K.nbytes >= WORTH:
        give_back()
    squares, K = K.new_empty(len(K)), K.mT  # as LAPACK stores matrices: no copy
    torch.linalg.eigh(K, out=(squares, K))
    return squares.flip(0), K.flip(1)


def _apart(squares: Tensor, most: int) -> bool:
    """Whether the first `most` directions are the first beyond doubt: round-off may swap those that
    carry the same.
    """
    return most < len(squares) and bool(
        squares[most - 1] - squares[most] > LEAST * torch.finfo(squares.dtype).eps * squares[0]
    )


def _square(
    W: Tensor, PW: Tensor, ruler: Weighting, dtype: torch.dtype
) -> tuple[Tensor, Callable[[Tensor, int], Tensor]]:
    """R (n, n) with P W = Q R, Q (m, n) orthonormal, and (U, r) -> the first r columns of P⁻¹ Q U,
    for m > n; U may be lost.

    Cholesky's factor of (P W)ᵀ P W, summed in float64, where its pivots say that a condition
    squared costs less than √eps; then P⁻¹ Q U = W R⁻¹ U, and full rank gives W back to eps times
    its condition.  Householder's Q R elsewhere.
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
        return R, lambda U, most: ruler.undo_left(Q @ U)[:, :most]
    R = R.to(dtype)

    def lift(U: Tensor, most: int) -> Tensor:
        torch.linalg.solve_triangular(R, U, upper=True, out=U)
        left = U.new_empty(len(W), most)
        for target, part in zip(left.split(COLUMNS), W.split(COLUMNS), strict=True):
            target.copy_((part.to(U) @ U)[:, :most])
        return left

    return R, lift


def _check(W: Tensor, ruler: Weighting) -> None:
    if W.ndim != 2:
        raise ValueError(f"a weight is a matrix (m, n), not a tensor of shape {tuple(W.shape)}")
    if not torch.isfinite(torch.stack(torch.aminmax(W))).all():
        raise ValueError("the weight has NaN or infinite entries")
    ruler.check_shape(*W.shape)
