"""Low-rank plus sparse: W ≈ Ŵ + S, rank Ŵ ≤ r, few entries in S, counted in bytes.

min ‖(W − Ŵ − S) L‖_F², L Lᵀ = G the input Gram, by turns: Ŵ is the whitened truncation of W − S; S
sits where |E_ij| √G_jj of E = W − Ŵ is largest, refitted row by row.  Rank 0 without refit is Wanda
(arXiv 2306.11695).  Storage is claimed, no speed.  Source: the idea of arXiv 2111.01697, abstract.
"""

from bisect import bisect_right
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from prehab_lib.budget import rank_for
from prehab_lib.factors import Factors
from prehab_lib.inputs import check_whole
from prehab_lib.roots import on_factor_device
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import decompose, error

RIDGE = 1e-8  # × the mean diagonal, on the Gram of a support
STALLED = 1e-3  # relative change of the error at which the rounds end


@dataclass(frozen=True)
class LowRankSparse:
    """Ŵ = factors and S (m, n); errors: squared, of truncation alone and after each round."""

    factors: Factors
    S: Tensor
    errors: tuple[float, ...]

    def dense(self) -> Tensor:
        return self.factors.dense() + self.S

    def __call__(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        return (x @ self.factors.V.T) @ self.factors.U.T + x @ self.S.T


def support(E: Tensor, gram: Tensor, kept: int, per_row: bool = False) -> Tensor:
    """Where S may be, bool (m, n): the `kept` largest |E_ij| √G_jj, Wanda's score of E (m, n).

    per_row: kept // m in each row, so that one large input does not take all of them.
    """
    score = (E.abs() * gram.diagonal().sqrt()).reshape(len(E) if per_row else 1, -1)
    places = score.topk(kept // len(score), dim=1).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, places, True).reshape(E.shape)


def refitted(E: Tensor, gram: Tensor, mask: Tensor) -> Tensor:
    """S (m, n) on a support with the least ‖(E − S) L‖²: row by row G_ΩΩ s = G_Ω: E_i."""
    S, wanted = torch.zeros_like(E), E @ gram
    damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    for row, chosen in enumerate(mask):
        place = chosen.nonzero().squeeze(1)
        S[row, place] = torch.linalg.solve(damped[place][:, place], wanted[row, place])
    return S


def low_rank_sparse(
    W: Tensor, stats: LayerStats, rank: int, kept: int, *, rounds=20, refit=True, per_row=False
) -> LowRankSparse:
    """Ŵ of `rank`, 0 for none, and S of at most `kept` entries for W (m, n), in float64.

    A new S is taken only where it lowers the error.  Raises ValueError for a rank or a number of
    entries that W does not have, or no Gram.
    """
    check_whole(0, min(W.shape), rank=rank)
    check_whole(0, W.numel(), kept=kept)
    check_whole(1, rounds=rounds)
    W, gram = on_factor_device(W), stats.need("gram", "low-rank + sparse").double().to(W.device)
    S, errors, factors = torch.zeros_like(W), [], Factors(W[:, :0], W[:0])
    for _ in range(rounds):
        if rank:
            factors = decompose(W - S, stats).truncate(rank)
        E = W - factors.dense()
        mask = support(E, gram, kept, per_row)
        new = refitted(E, gram, mask) if refit else E * mask
        old, found = error(E, S, stats), error(E, new, stats)
        S = new if found < old else S
        errors = [*(errors or [old]), min(found, old)]
        if errors[-2] - errors[-1] <= STALLED * errors[-2]:
            break
    return LowRankSparse(factors, S, tuple(errors))


def places_of(shape: tuple[int, int], kept: int) -> tuple[int, int]:
    """Bytes that say where S is, two ways: a bit for every entry; int16 columns and int32 rows."""
    m, n = shape
    return -(-m * n // 8), 2 * kept + 4 * (m + 1) if n <= 2**15 else 4 * m * n


def storage(shape: tuple[int, int], rank: int, kept: int) -> int:
    """Bytes of Ŵ and S (m, n) in 16 bits, the cheaper of both ways to say where S is with them."""
    return 2 * rank * sum(shape) + (2 * kept + min(places_of(shape, kept)) if kept else 0)


def packed(found: LowRankSparse) -> dict[str, Tensor]:
    """The tensors of a file, of as many bytes as `storage` counts for S's entries."""
    mask, factors = found.S.cpu() != 0, vars(found.factors) if found.factors.rank else {}
    tensors = {name: factor.half().contiguous() for name, factor in factors.items()}
    if not mask.any():
        return tensors
    tensors["values"] = found.S.cpu()[mask].half()
    bits, columns = places_of(mask.shape, int(mask.sum()))
    if bits <= columns:
        return tensors | {"mask": torch.from_numpy(numpy.packbits(mask.numpy()))}
    rows = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    return tensors | {"columns": mask.nonzero()[:, 1].short(), "rows": rows}


def split(shape: tuple[int, int], removed: float, share: float) -> tuple[int, int]:
    """(rank, kept) in the bytes of `rank_for(shape, removed)`, this share of them for S."""
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share!r}: give the part of the bytes for S, from 0 to 1")
    budget = storage(shape, rank_for(shape, removed), 0)
    counts = range(shape[0] * shape[1] + 1)
    kept = bisect_right(counts, share * budget, key=lambda kept: storage(shape, 0, kept)) - 1
    return (budget - storage(shape, 0, kept)) // (2 * sum(shape)), kept
