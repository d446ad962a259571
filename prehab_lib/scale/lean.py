"""The kernel of `decomposition` for large models: no second matrix of a weight's size, no SVD.

The smaller side is factorised, k = min(m, n).  A tall W is first made square, W = Q R with R from
Cholesky's factor of Wᵀ W; then one eigendecomposition of the k × k moment of P W Q, about 9 k³ +
2 k² n + 2 k n² + 2 m n k operations, m n k more for a tall one; and again on what is singular.

A weight with n > 2 m takes a Gram as it is, not its root, which needs more memory than the weight.
Squares are exact to float64's eps times the largest: less than √(n eps) of sigma[0] is unseen.

Memory beside W and the Gram, with P = I and n > 2 m: LAPACK's workspace of 2 k² numbers beside the
moment of k²; then the result.  With n ≤ 2 m the root besides, and W in `dtype` or its R.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prehab_lib.decomposition import Decomposition, Weighting, check_kernel_input
from prehab_lib.roots import checked_gram, exactly
from prehab_lib.scale.memory import give_back
from prehab_lib.statistics.cores import one_core

COLUMNS = 512  # of a product that live at a time, and of a weight that are in another dtype for it
WORTH = 2**23  # bytes of a moment beside whose eigenvectors giving back takes 1 % of the time
LEAST = 4096  # times eps σ₁²: what stands out is turned by less than 1 / LEAST

Pairs = Iterator[tuple[Tensor, Tensor]]


@exactly()
@one_core
def factorise(
    W: Tensor, ruler: Weighting, dtype: torch.dtype | None = None, most: int | None = None
) -> Decomposition:
    """As `decomposition.factorise`; `most` saves memory, not time, and gives the same bits."""
    check_kernel_input(W, ruler, most)
    dtype, most = dtype or W.dtype, min(*W.shape, *([] if most is None else [most]))
    PW = W if ruler.left is None else ruler.apply_left(W.to(dtype))
    if W.shape[0] <= W.shape[1]:
        U, right, sigma, rest = _principal(PW, ruler, dtype, most)
        left = ruler.undo_left(U)[:, :most]
    else:
        R, lift = _square(W, PW, ruler, dtype)
        del PW  # with a ruler on the left it is a copy of W
        U, right, sigma, rest = _principal(R, ruler, dtype, most)
        left = lift(U, most)
    return Decomposition(left, right, sigma.cummin(0).values, rest)


def _principal(
    B: Tensor, ruler: Weighting, dtype: torch.dtype, most: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """For B (k, n), k ≤ n: U (k, k); `most` rows of Uᵀ B; what each carries; the rest squared."""
    k, n = B.shape
    round_off = n * torch.finfo(dtype).eps
    view = View.of(ruler, B, dtype)
    squares, U = _eigen(view.moment(B))
    U = U.to(dtype)
    noise = round_off * float(squares.sum().clamp_min(0).sqrt())
    gap = squares[most - 1] - squares[min(most, k - 1)]  # round-off may swap rows of one size
    if most < k and gap > LEAST * torch.finfo(squares.dtype).eps * squares[0]:
        # The first rows may do, and the others are never made.
        first = _Rows(U, _turned(B, U, most))
        if first.count_clear(view, noise) == most:
            rest = float(squares[most:].clamp_min(0).sum())
            return first.U, first.B, first.carried.to(dtype), rest
        del first
    rows = _Rows(U, _turned(B, U, k))
    rows.settle(view, noise)
    visible = rows.done
    if visible < k:  # what the ruler cannot see follows in the order of the weights
        weights = View(partial(by_root, Q=None, dtype=dtype))
        rows.turn(weights)
        rows.settle(weights, round_off * float(torch.linalg.vector_norm(rows.B)))
        rows.carried[visible:] = 0 if view.blur else view.sizes(rows.B[visible:])
    rest = float(rows.carried[most:].square().sum())
    return rows.U, rows.B[:most], rows.carried[:most].to(dtype), rest


class _Rows:
    """B = Uᵀ (what came in), turned on and on; the first `done` rows are principal ones.

    Squaring turns a direction that carries σ by up to eps σ₁² / σ²: only rows that stand out of
    that are done, and the remainder is turned again.
    """

    def __init__(self, U: Tensor, B: Tensor):
        self.U, self.B = U, B
        self.carried = B.new_zeros(0)  # (rows,), under the ruler
        self.done = 0

    def settle(self, view: "View", noise: float) -> None:
        """Count what is clear and turn the remainder, until nothing more stands out."""
        while self.count_clear(view, noise) and self.done < len(self.B):
            self.turn(view)

    def count_clear(self, view: "View", noise: float) -> int:
        """Put the clear ones of the rows not done first, by size, and count them as done."""
        left = self.B[self.done :]
        carried = view.sizes(left)
        least = (max(left.shape[1], LEAST) * torch.finfo(carried.dtype).eps) ** 0.5
        clear = (carried > carried.max() * least) & (carried > noise)
        if view.blur:
            clear &= carried > view.blur * torch.linalg.vector_norm(left, dim=1)
        order = torch.argsort(torch.where(clear, carried, -1), descending=True, stable=True)
        self.carried = torch.cat([self.carried[: self.done].to(carried), carried[order]])
        if (order.diff() != 1).any():
            columns = self.U[:, self.done : self.done + len(order)]
            columns.copy_(columns[:, order])
            for part in left.split(COLUMNS, dim=1):
                part.copy_(part[order])
        count = int(clear.sum())
        self.done += count
        return count

    def turn(self, view: "View") -> None:
        """Make the rows that are not done principal ones of their own moment, in place."""
        left, columns = self.B[self.done :], self.U[:, self.done :]
        Q = _eigen(view.moment(left))[1].to(left.dtype)
        columns.copy_(columns @ Q)
        for part in left.split(COLUMNS, dim=1):
            part.copy_(Q.T @ part)


def _turned(B: Tensor, Q: Tensor, most: int) -> Tensor:
    """The first `most` rows of Qᵀ B, in the dtype of Q.  All are computed, for the same bits."""
    turned = Q.new_empty(most, B.shape[1])
    for target, part in zip(turned.split(COLUMNS, dim=1), B.split(COLUMNS, dim=1), strict=True):
        target.copy_((Q.T @ part.to(Q))[:most])
    return turned


def _eigen(K: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of a symmetric K (k, k), the largest first, in K's memory."""
    if K.nbytes >= WORTH:
        give_back()
    squares, K = K.new_empty(len(K)), K.mT  # as LAPACK stores matrices: no copy
    torch.linalg.eigh(K, out=(squares, K))
    return squares.flip(0), K.flip(1)


def _square(W: Tensor, PW: Tensor, ruler: Weighting, dtype: torch.dtype) -> tuple[Tensor, Callable]:
    """R (n, n) with P W = Q R, Q (m, n) orthonormal, for m > n; and a function.

    The function (U, r) -> the first r columns of P⁻¹ Q U may overwrite U.  R is Cholesky's factor
    of (P W)ᵀ P W, summed in float64, where its pivots say that a condition squared costs less than
    √eps; then P⁻¹ Q U = W R⁻¹ U.  Householder's Q R elsewhere.
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


@dataclass(frozen=True)
class View:
    """What a ruler says about rows B (k, n).

    pairs: B -> pairs (k, c) whose Σ X Yᵀ has the symmetric part B Q Qᵀ Bᵀ.  blur: times its norm,
    what of a row the ruler cannot tell from nothing; 0: round-off alone.
    """

    pairs: Callable[[Tensor], Pairs]
    blur: float = 0.0

    @classmethod
    def of(cls, ruler: Weighting, B: Tensor, dtype: torch.dtype) -> "View":
        """For rows such as B: of few and long ones a Gram is taken without its root."""
        n = B.shape[1]
        if ruler.gram is None or n <= 2 * len(B):
            return cls(partial(by_root, Q=ruler.right, dtype=dtype))
        G = checked_gram(ruler.gram, average=False)
        blur = float((n * torch.finfo(G.dtype).eps * torch.linalg.matrix_norm(G)).sqrt())
        return cls(partial(by_gram, G=G), blur)

    def moment(self, B: Tensor) -> Tensor:
        """B Q Qᵀ Bᵀ (k, k): the symmetric part of Σ X Yᵀ."""
        K = None
        for X, Y in self.pairs(B):
            K = X @ Y.T if K is None else K.addmm_(X, Y.T)
            del X, Y  # or they would live while the next pair is made
        return (K + K.T).div_(2)

    def sizes(self, B: Tensor) -> Tensor:
        """‖b_i Q‖ of each row, (k,): the root of the moment's diagonal."""
        total = 0.0
        for X, Y in self.pairs(B):
            total = total + (X * Y).sum(1)
            del X, Y
        return total.clamp_min(0).sqrt()


def by_root(B: Tensor, Q: Tensor | None, dtype: torch.dtype) -> Pairs:
    """Pairs (columns of B Q, the same), in `dtype`; of a triangular Q only the triangle is read."""
    B = B if Q is None else B.to(dtype)
    for start in range(0, B.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        if Q is None:
            part = B[:, columns].to(dtype)
        else:
            first = 0 if Q[:start, columns].any() else start
            part = B[:, first:] @ Q[first:, columns].to(B)
        yield part, part
        del part  # or it would live while the next is made


def by_gram(B: Tensor, G: Tensor) -> Pairs:
    """Pairs without a root: columns of B G, and of B.  B is never whole in the dtype of G."""
    blocks = [slice(start, start + COLUMNS) for start in range(0, len(G), COLUMNS)]
    for columns in blocks:
        X = sum(B[:, rows].to(G) @ G[rows, columns] for rows in blocks)
        yield X, B[:, columns].to(G)
        del X
