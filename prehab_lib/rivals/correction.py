"""Zero Sum SVD's projected-gradient correction: give back, within the same rank, what truncation
cost the loss to first order, once (`projected_gradient`) or between cuts (`compress_in_stages`).

Source: Zero Sum SVD (arXiv 2602.02848); stages as in its code.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.inputs import check_whole
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.progress import progress
from prehab_lib.rivals import shared
from prehab_lib.rivals.shared import Cuts, Stats, as_linear, check_given, low_rank_layers
from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.fisher import sample_means
from prehab_lib.statistics.gradients import GradientPass
from prehab_lib.weightings import decompose


def projected_gradient(
    model: nn.Module,
    *,
    decompositions: Cuts,
    stats: Stats | None = None,
    weighting: str = "gram",
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
) -> None:
    """W' ← Trunc_k(W' + ΔW') for every low-rank layer W' = U V of rank k, in place; ΔW' is
    `restoring_step` for the lost part W − W', W = left · right of the layer's decomposition.

    The gradients of `task_loss` with respect to the dense W' (m, n) are taken at the weights after
    truncation, as means over batches.  Trunc_k is by the ruler `weighting` with `stats`.  Ranks,
    biases, dense layers, and a layer whose gradient is zero keep their bits.  If anything fails, no
    factor has changed.

    Cost: a forward and backward pass of every batch, and one more decomposition a layer.  Memory:
    W' of every low-rank layer, and a matrix (m, n) of each in float64.  Raises ValueError naming
    what is missing, a layer that no gradient reaches, or one whose factors leave its precision.
    """
    check_arguments(task_loss, batches)
    layers = low_rank_layers(model, decompositions, "correct")
    slopes = product_gradients(model, layers, batches, task_loss)
    new: dict[str, Factors] = {}
    for name, layer in progress(layers.items(), "correction"):
        W_k, cut = product(layer), shared.whole(decompositions[name])
        step = restoring_step(cut.left.to(W_k) @ cut.right.to(W_k) - W_k, slopes.pop(name))
        if not step.any():
            continue
        corrected = decompose(W_k + step, (stats or {}).get(name), weighting, dtype=W_k.dtype)
        factors = corrected.truncate(layer.rank).balanced()
        U, V = factors.U.to(layer.U.weight), factors.V.to(layer.V.weight)
        if not (torch.isfinite(U).all() and torch.isfinite(V).all()):
            raise ValueError(f"layer {name!r}: the corrected factors are not finite in {U.dtype}")
        new[name] = Factors(U, V)
    with torch.no_grad():
        for name, factors in new.items():
            layers[name].U.weight.copy_(factors.U)
            layers[name].V.weight.copy_(factors.V)


def check_arguments(task_loss=None, batches=None) -> None:
    """Raises ValueError naming what the recovery will ask for, before anything is cut."""
    check_given("recovery 'projected_gradient'", task_loss=task_loss, batches=batches)


def compress_in_stages(
    model: nn.Module,
    cut: Callable[[nn.Module], object],
    task_loss: Callable,
    batches: Iterable,
    *,
    stages: int = 2,
    layers: Iterable[str] | None = None,
):
    """`cut(model)` `stages` times over, in place, with a correction towards the original weights
    between two cuts; returns what the last one returned.

    cut: collects statistics and calls `surgery.compress`, always from full rank to the whole
    target.  After every cut but the last each low-rank layer becomes dense again, at W' + ΔW'
    (m, n), where `restoring_step` restores what was lost of the *original* W.  So the inputs that a
    stage whitens by have passed the others' truncation.  layers: those that `cut` compresses, None
    for the model's default; their original weights stay in memory.  Where anything fails, the model
    is as it was.  Raises ValueError for a bad number of stages, or naming what is missing.
    """
    check_whole(1, stages=stages)
    check_given("compress_in_stages", task_loss=task_loss, batches=batches)
    original = linear_layers(model, layers)
    try:
        for _ in range(stages - 1):
            cut(model)
            _restore(model, original, task_loss, batches)
        return cut(model)
    except BaseException:
        for name, module in original.items():
            replace_module(model, name, module)
        raise


@torch.no_grad()
def _restore(model: nn.Module, original: Mapping, task_loss: Callable, batches: Iterable) -> None:
    """Every low-rank layer dense again, at W' + ΔW', with all gradients from before any step."""
    layers = low_rank_layers(model, original, "correct")
    slopes = product_gradients(model, layers, batches, task_loss)
    for name, layer in layers.items():
        W_k = product(layer)
        lost = on_factor_device(original[name].weight).to(W_k.device) - W_k
        W = W_k + restoring_step(lost, slopes.pop(name))
        replace_module(model, name, as_linear(layer, W))


def restoring_step(lost: Tensor, gradient: Tensor) -> Tensor:
    """ΔW' (m, n): the smallest step that changes the loss to first order as adding `lost` would."""
    lost = on_factor_device(lost)
    g = gradient.to(lost)
    square = g.square().sum()
    return (g * lost).sum() / square * g if square > 0 else torch.zeros_like(lost)


def product_gradients(
    model: nn.Module, layers: Mapping, batches: Iterable, task_loss: Callable
) -> dict[str, Tensor]:
    """layer -> mean over batches of ∂ task_loss / ∂ W' (m, n) in float64, W' = U V as one matrix.

    In eval mode.  Raises ValueError where there is no batch, or no gradient reaches a layer.
    """
    if not layers:
        return {}
    dense = {name: as_linear(layer) for name, layer in layers.items()}
    with shared.replaced(model, dense):
        run = GradientPass(model, dense, batches, task_loss, per_sample=False)
        means = sample_means(run, {"grad"})
    return {name: values["grad"] for name, values in means.items()}


def product(layer: LowRankLinear) -> Tensor:
    """W' = U V (m, n) in float64."""
    return on_factor_device(layer.U.weight) @ on_factor_device(layer.V.weight)
