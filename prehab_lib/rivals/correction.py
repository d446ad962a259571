"""Projected-gradient correction: give back, within the same rank, what truncation cost the loss to
first order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.inputs import check_whole
from prehab_lib.layers import refuse_packed, replace_module
from prehab_lib.progress import progress
from prehab_lib.rivals.components import whole
from prehab_lib.rivals.trial import check_given
from prehab_lib.roots import on_factor_device
from prehab_lib.save.dense import dense_weight
from prehab_lib.statistics.fisher import sample_means
from prehab_lib.statistics.gradients import GradientPass
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import decompose

RIDGE = 1e-6  # of the mean squared norm of several gradients, which may be parallel


def projected_gradient(
    model: nn.Module,
    *,
    decompositions: Mapping[str, Decomposition],
    stats: Mapping[str, LayerStats] | None = None,
    weighting: str = "gram",
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
    gradients: int = 1,
) -> None:
    """W' ← Trunc_k(W' + ΔW') for every low-rank layer W' = U V of rank k, in place; ΔW' is
    `restoring_step`.

    The gradients are those of `task_loss`, averaged over batches, with respect to the dense product
    W' (m, n); all layers' are taken at the same weights, those after truncation.  The lost part is
    W − W', with W = left · right of the layer's decomposition.  Trunc_k is the method's own, by the
    ruler `weighting` with `stats`.  Ranks, biases and dense layers stay, and so do the bits of a
    layer whose gradient is zero.  If anything fails, no factor has changed.

    gradients: into so many groups `batches` are divided, each of which gives one gradient.

    Cost: a forward and backward pass of every batch, and one more decomposition a layer (two where
    the first did not stay on its shelf, see `lazy`).  Memory: W' of every low-rank layer beside the
    factors, and `gradients` matrices (m, n) of each layer in float64.

    Source: Zero Sum SVD (arXiv 2602.02848), correction; several gradients as in its code.
    Raises ValueError naming what is missing, a layer that no gradient reaches, or one whose factors
    leave its precision.
    """
    check_arguments(task_loss, batches, validation, gradients)
    layers = low_rank_layers(model, decompositions)
    found = product_gradients(model, layers, batches, task_loss, gradients)
    new: dict[str, Factors] = {}
    for name, layer in progress(layers.items(), "correction"):
        W_k, cut = product(layer), whole(decompositions[name])
        step = restoring_step(cut.left.to(W_k) @ cut.right.to(W_k) - W_k, found.pop(name))
        if step.any():
            corrected = decompose(W_k + step, (stats or {}).get(name), weighting, dtype=W_k.dtype)
            new[name] = _stored(name, corrected.truncate(layer.rank).balanced(), layer)
    with torch.no_grad():
        for name, factors in new.items():
            layers[name].U.weight.copy_(factors.U)
            layers[name].V.weight.copy_(factors.V)


def check_arguments(task_loss=None, batches=None, validation=None, gradients: int = 1) -> None:
    check_given("recovery 'projected_gradient'", task_loss=task_loss, batches=batches)
    check_whole(1, gradients=gradients)


def restoring_step(lost: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """ΔW' (m, n), the smallest matrix that changes the loss to first order as giving back `lost` =
    W − W' (m, n) would.

    One gradient g (m, n): ⟨g, ΔW⟩ / ⟨g, g⟩ · g.  Several: Σ_j c_j g_j with (Γ + 1e-6 (tr Γ / N) I)
    c = b, Γ_jl = ⟨g_j, g_l⟩, b_j = ⟨g_j, ΔW⟩.  So ⟨g_j, ΔW'⟩ = ⟨g_j, ΔW⟩ for each j (but for the
    ridge) and ‖ΔW'‖ ≤ ‖ΔW‖.  Zero where the gradients are.
    """
    lost = on_factor_device(lost)
    g = torch.stack([gradient.to(lost).flatten() for gradient in gradients])  # (N, m n)
    gamma, b = g @ g.T, g @ lost.flatten()
    mean = gamma.diagonal().mean()
    if not mean > 0:
        return torch.zeros_like(lost)
    if len(g) > 1:
        gamma = gamma + RIDGE * mean * torch.eye(len(g)).to(gamma)
    return (torch.linalg.solve(gamma, b) @ g).view_as(lost)


def product_gradients(
    model: nn.Module,
    layers: Mapping[str, LowRankLinear],
    batches: Iterable,
    task_loss: Callable,
    groups: int = 1,
) -> dict[str, list[Tensor]]:
    """layer -> for each group of batches the mean of ∂ task_loss / ∂ W' (m, n) in float64; W' = U V
    counts as one free matrix.

    In eval mode, a batch at once: what its loss is the mean of, with padding and labels that are
    left out, is its own affair.

    Raises ValueError where there are fewer batches than groups, or no gradient reaches a layer.
    """
    parts = [batches] if groups == 1 else _divided(batches, groups)
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    if not layers:
        return found
    with _dense(model, layers) as modules:
        for part in parts:
            run = GradientPass(model, modules, part, task_loss, per_sample=False)
            for name, values in sample_means(run, {"grad"}).items():
                found[name].append(values["grad"])
    return found


def low_rank_layers(model: nn.Module, names: Iterable[str]) -> dict[str, LowRankLinear]:
    """Those of `names` that are low-rank layers of the model; dense ones are left out.

    Raises ValueError for one in 8 bits, which nothing could be written to.
    """
    modules = {name: model.get_submodule(name) for name in names}
    found = {name: module for name, module in modules.items() if isinstance(module, LowRankLinear)}
    refuse_packed(found, "correct")
    return found


def product(layer: LowRankLinear) -> Tensor:
    """W' = U V (m, n) in float64."""
    return on_factor_device(layer.U.weight) @ on_factor_device(layer.V.weight)


def as_linear(layer: LowRankLinear) -> nn.Linear:
    """The dense layer that computes the same: with W' multiplied out, the same bias, flags, mode,
    dtype and device.
    """
    weight = layer.U.weight
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(dense_weight(layer), requires_grad=weight.requires_grad)
    dense.bias = layer.bias
    return dense.train(layer.training)


@contextmanager
def _dense(model: nn.Module, layers: Mapping[str, LowRankLinear]) -> Iterator[dict[str, nn.Linear]]:
    """Inside, these layers are dense; the low-rank ones come back whatever happens."""
    dense = {name: as_linear(layer) for name, layer in layers.items()}
    try:
        for name, module in dense.items():
            replace_module(model, name, module)
        yield dense
    finally:
        for name, layer in layers.items():
            replace_module(model, name, layer)


def _divided(batches: Iterable, groups: int) -> list[list]:
    """Every `groups`-th batch, so that each group sees the data from beginning to end."""
    batches = list(batches)
    if len(batches) < groups:
        raise ValueError(
            f"gradients = {groups} needs as many batches, and there are {len(batches)}: pass more, or smaller"
        )
    return [batches[start::groups] for start in range(groups)]


def _stored(name: str, factors: Factors, layer: LowRankLinear) -> Factors:
    """The factors as the layer will hold them.  Raises ValueError naming it where they are not
    finite there.
    """
    U, V = factors.U.to(layer.U.weight), factors.V.to(layer.V.weight)
    if not (torch.isfinite(U).all() and torch.isfinite(V).all()):
        raise ValueError(f"layer {name!r}: the corrected factors are not finite in {U.dtype}")
    return Factors(U, V)
