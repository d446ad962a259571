"""Ordered factors: one stored model serves every rank, by slicing.

Source: NestedLoRA (arXiv 2402.03655), whose joint nesting orders the components of a product F Gᵀ
without orthogonality: the loss is a weighted sum over prefixes l = 1..r.  There it finds singular
functions; its use for compression, a task loss over the prefixes of all layers, is ours.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from numbers import Real
from os import PathLike

import torch
from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_seed
from prehab_lib.layers import replace_module
from prehab_lib.surgery import first_components, load


def masks(weights: Tensor) -> tuple[Tensor, Tensor]:
    """m (r,), m_l = Σ_{i ≥ l} w_i, and M (r, r), M_ij = min(m_i, m_j), of positive weights (r,).

    Raises ValueError where a weight is not positive: its prefix would have no order.
    """
    if weights.ndim != 1 or not bool((weights > 0).all()):
        raise ValueError(f"weights = {weights.tolist()}: give one above 0 for each prefix")
    m = weights.flip(0).cumsum(0).flip(0)  # (r,)
    return m, torch.minimum(m[:, None], m)


def joint_loss(F: Tensor, G: Tensor, A: Tensor, weights: Tensor) -> Tensor:
    """Σ_l w_l (‖A − F_{1:l} G_{1:l}ᵀ‖² − ‖A‖²) in one pass.   Source: joint nesting, 2402.03655.

    F (m, r), G (n, r), A (m, n), weights (r,).  For a layer A = W L, F = U and G = (V L)ᵀ.
    """
    m, M = masks(weights)
    overlap = torch.einsum("ml,mn,nl->l", F, A, G)  # (r,)
    return (M * (F.T @ F) * (G.T @ G)).sum() - 2 * (m * overlap).sum()


def rank_at(rank: int, level: float) -> int:
    """The rank that a level keeps of `rank`, at least 1; ValueError for a level not in (0, 1]."""
    if isinstance(level, bool) or not isinstance(level, Real) or not 0 < level <= 1:
        raise ValueError(f"level = {level!r}: give the fraction of the rank, above 0 and at most 1")
    return max(1, int(Fraction(str(level)) * rank))  # of the decimal: 0.29 of 100 is 29


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Name -> low-rank layer; ValueError where there is none."""
    found = {n: layer for n, layer in model.named_modules() if isinstance(layer, LowRankLinear)}
    if not found:
        raise ValueError("a level needs a compressed model: run surgery.compress first")
    return found


@contextmanager
def at_level(model: nn.Module, level: float) -> Iterator[None]:
    """Inside, every layer computes with the first components alone; gradients reach no others."""
    hooks = [(layer.V, rank_at(layer.rank, level)) for layer in low_rank_layers(model).values()]
    handles = [V.register_forward_hook(partial(_first, kept)) for V, kept in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(kept: int, module: nn.Module, inputs, z: Tensor) -> Tensor:  # (..., r) -> (..., r)
    return z * (torch.arange(z.shape[-1], device=z.device) < kept)


class Nested:
    """A task loss for `rehab`: (1 − α) of the whole model's, and α of that at a level drawn anew.

    task_loss(model, batch) -> scalar.  levels: fractions of the rank; the order is fixed *between*
    them alone.  Memory: the activations of two passes.  Raises ValueError for a bad number, or a
    model without low-rank layers.
    """

    def __init__(
        self,
        task_loss: Callable[[nn.Module, object], Tensor],
        levels: Sequence[float],
        *,
        alpha: float = 0.5,
        seed: int = 0,
    ):
        if not levels or not 0 <= alpha <= 1:
            raise ValueError(f"levels = {levels}, alpha = {alpha}: give levels, and a share")
        for level in levels:
            rank_at(1, level)
        check_seed(seed)
        self.task_loss, self.levels, self.alpha = task_loss, list(levels), alpha
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, model: nn.Module, batch) -> Tensor:
        drawn = int(torch.randint(len(self.levels), (), generator=self.generator))
        with at_level(model, self.levels[drawn]):
            cut = self.task_loss(model, batch)
        return (1 - self.alpha) * self.task_loss(model, batch) + self.alpha * cut


def slice_to(model: nn.Module, level: float) -> nn.Module:
    """Keep the first components of every layer, in place; the factors cost `level` of before."""
    for name, layer in low_rank_layers(model).items():
        replace_module(model, name, first_components(layer, rank_at(layer.rank, level)))
    return model


def load_at(folder: str | PathLike, level: float) -> nn.Module:
    """The model that `surgery.save` wrote, at a level; raises ValueError as `load` does."""
    return slice_to(load(folder), level)
