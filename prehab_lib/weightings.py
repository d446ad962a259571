"""One kernel for every ruler: min ‖P (W − Ŵ) Q‖_F over rank Ŵ ≤ r, solved once per layer for all ranks.

A ruler is a `Weighting(left=P, right=Q)`; the solution is Ŵ = P⁻¹ U_r U_rᵀ P W with U_r the top left singular vectors of
P W Q.  So Q is never inverted, and a singular Gram is no failure.  Source: digest of Table I; for P = I it is SVD-LLM's
whitened truncation, SVD-LLM V2's, and Swift-SVD's projection of the outputs, which are one map.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.factors import Factors
from prehab_lib.layers import linear_layers
from prehab_lib.progress import progress
from prehab_lib.stats import LayerStats, on_factor_device


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


def identity(stats: LayerStats | None = None) -> Weighting:
    """Plain SVD's ruler: squared error of the weights, ‖W − Ŵ‖_F².

    Source: Table I, row "SVD" (Eckart and Young).  Needs no statistic.
    """
    return Weighting()


def gram(stats: LayerStats) -> Weighting:
    """SVD-LLM's ruler: squared error of the layer's *output*, tr (W − Ŵ) G (W − Ŵ)ᵀ = ‖(W − Ŵ) L‖_F² with L Lᵀ = G.

    Source: Table I, row "SVD-LLM" (arXiv 2403.07378).  stats.gram (n, n): mean of x xᵀ over calibration tokens.
    """
    return Weighting(right=stats.gram_root())


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"identity": identity, "gram": gram}


@dataclass(frozen=True)
class Decomposition:
    """W = left · right, ordered so that the first r columns and rows are the best rank-r answer of one ruler.

    left (m, k), right (k, n), sigma (k,) descending, k = min(m, n).  sigma[i] is what component i carries under the ruler:
    dropping all from r on costs exactly Σ_{i≥r} sigma[i]² (the squared ruler).
    """

    left: Tensor
    right: Tensor
    sigma: Tensor

    def truncate(self, rank: int) -> Factors:
        """The best factors of that rank, U (m, rank) and V (rank, n).  Raises ValueError outside 1 … k."""
        if not 1 <= rank <= len(self.sigma):
            raise ValueError(f"rank = {rank}: this layer allows 1 to {len(self.sigma)}")
        return Factors(self.left[:, :rank], self.right[:rank])

    def tail_error(self, rank: int) -> float:
        """The squared ruler after `truncate(rank)`, predicted from the singular values alone."""
        return float(self.sigma[rank:].square().sum())


def weighting_named(name: str) -> Callable[..., Weighting]:
    """The function behind a name.  Raises ValueError that lists the known names."""
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting = {name!r} is not known: choose one of {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[name]


def decompose(
    W: Tensor,
    stats: LayerStats | None = None,
    weighting: str | Weighting = "gram",
    dtype: torch.dtype = torch.float64,
    **options,
) -> Decomposition:
    """Factorise W (m, n) under a ruler; every rank is then a slice.

    The smaller side is factorised: an eigendecomposition of the p × p Gram of P W Q, p = min(m, n), about 9 p³ + 4 p m n
    operations.  It is repeated on the remainder only where P W Q is singular to working precision.  float64 by default;
    `dtype=torch.float32` halves time and memory and costs accuracy in the tail.  options go to the weighting.
    Raises ValueError for an unknown weighting, a statistic that was not collected, a ruler of another shape, or NaN.
    """
    W = on_factor_device(W, dtype)
    ruler = (
        weighting if isinstance(weighting, Weighting) else weighting_named(weighting)(stats or LayerStats(), **options)
    )
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


def decompose_all(
    model: nn.Module,
    stats: dict[str, LayerStats] | None,
    weighting: str = "gram",
    layers: Iterable[str] | None = None,
    **options,
) -> dict[str, Decomposition]:
    """`decompose` for each layer: name -> `Decomposition`.  layers: names, or None for those of `stats`, or the default.

    Raises ValueError naming a layer that has no statistics or whose factorisation is not finite.
    """
    names = list(stats) if layers is None and stats else layers
    decompositions = {}
    for name, module in progress(linear_layers(model, names).items(), "decompositions"):
        try:
            decompositions[name] = decompose(module.weight, _stats_of(stats, name), weighting, **options)
        except ValueError as problem:
            raise ValueError(f"layer {name!r}: {problem}") from problem
    return decompositions


def error(
    W: Tensor, W_hat: Tensor, stats: LayerStats | None = None, weighting: str | Weighting = "gram", **options
) -> float:
    """The ruler itself, squared: ‖P (W − Ŵ) Q‖_F², for W and Ŵ (m, n)."""
    ruler = (
        weighting if isinstance(weighting, Weighting) else weighting_named(weighting)(stats or LayerStats(), **options)
    )
    return float(ruler.apply(on_factor_device(W) - on_factor_device(W_hat)).square().sum())


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


def _stats_of(stats: dict[str, LayerStats] | None, name: str) -> LayerStats:
    if stats is None:
        return LayerStats()
    if name not in stats:
        raise ValueError("no statistics were collected for it")
    return stats[name]
