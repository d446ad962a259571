"""Train for truncation itself: part of the loss is that of the model as surgery would cut it.

Source: Decomposable-Net (arXiv 1910.13141): (1 − α) L(θ) + α E_z L(Trunc_z(θ)), z drawn anew each
step.  Differences: z is the fraction removed, the same for every layer.  Truncation is that of the
Gram ruler, Ŵ = Q Qᵀ W with Q = U_r of W L.  Q is made every few steps and held fixed in between and
in the backward pass: Q Qᵀ Γ for a gradient Γ at Ŵ.  The paper decomposes at every step, has batch
norms to keep apart, and scales the second gradient to the first's norm.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prehab_lib.budget import break_even_rank, check_removed, rank_for
from prehab_lib.inputs import check_seed, check_whole
from prehab_lib.layers import linear_layers
from prehab_lib.rivals.shared import Stats, check_given, check_share
from prehab_lib.statistics.cores import one_core


class Decomposable:
    """A task loss for `prehab`, whose λ is then 0.

    task_loss(model, batch) -> scalar.  stats: layer -> statistics with "gram".  alpha: share of the
    truncated model's loss, from 0 (ordinary training) to 1.  removed: the range that z is drawn
    from, uniformly, by `seed`.  refresh: calls with gradients between decompositions.  Memory: one
    U (m, p) of every layer, p = min(m, n), and the activations of two passes.  Raises ValueError
    for numbers that make no sense or a statistic that is missing.
    """

    def __init__(
        self,
        task_loss: Callable[[nn.Module, object], Tensor],
        stats: Stats,
        *,
        alpha: float = 0.5,
        removed: tuple[float, float] = (0.2, 0.8),
        refresh: int = 10,
        seed: int = 0,
    ):
        check_share(alpha=alpha)
        check_given("Decomposable", stats=stats)
        if not isinstance(removed, tuple | list) or len(removed) != 2:
            raise ValueError(f"removed = {removed!r}: give a range, (smaller, larger)")
        low, high = removed
        if check_removed(low) > check_removed(high):
            raise ValueError(f"removed = {removed}: the range starts with the smaller fraction")
        check_whole(1, refresh=refresh)
        check_seed(seed)
        self.task_loss, self.stats = task_loss, stats
        self.alpha, self.removed, self.refresh = alpha, removed, refresh
        self.generator = torch.Generator().manual_seed(seed)
        self.calls = 0
        self.U: dict[str, Tensor] = {}
        self.made_of: dict[str, nn.Module] = {}  # the layers that U is of

    def __call__(self, model: nn.Module, batch) -> Tensor:
        whole = self.task_loss(model, batch)
        if not self.alpha:
            return whole
        layers = linear_layers(model, self.stats)
        anew = torch.is_grad_enabled() and self.calls % self.refresh == 0
        if anew or any(self.made_of.get(name) is not layer for name, layer in layers.items()):
            self.U = {n: self._left_vectors(n, layer.weight) for n, layer in layers.items()}
            self.made_of = layers
        self.calls += torch.is_grad_enabled()
        low, high = self.removed
        z = low + (high - low) * float(torch.rand((), generator=self.generator))
        cut = self.task_loss(_Replaced(model, truncated(layers, self.U, round(z, 6))), batch)
        return (1 - self.alpha) * whole + self.alpha * cut

    @torch.no_grad()
    def _left_vectors(self, name: str, W: Tensor) -> Tensor:
        """U (m, p) of W L, in the weight's dtype."""
        L = self.stats[name].gram_root().to(W.device)
        return one_core(torch.linalg.svd)(W.double() @ L, full_matrices=False).U.to(W.dtype)


def truncated(layers: Mapping, U: Mapping[str, Tensor], removed: float) -> dict[str, Tensor]:
    """Name of a weight -> Q Qᵀ W (m, n) at the rank that removes this fraction, with a graph."""
    weights = {}
    for name, layer in layers.items():
        W = layer.weight
        if break_even_rank(W.shape):
            Q = U[name][:, : rank_for(W.shape, removed)]
            weights[f"{name}.weight"] = Q @ (Q.T @ W)
    return weights


class _Replaced:
    """A model that computes with other weights; everything else is asked of the model itself."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]):
        self._model, self._weights = model, weights

    def __call__(self, *arguments, **named):
        return functional_call(self._model, self._weights, arguments, named)

    def __getattr__(self, name: str):
        return getattr(self._model, name)
