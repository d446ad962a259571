"""SVD-LLM's closed-form update: left factors refitted to their inputs in the compressed model.

Source: SVD-LLM, earlier version and the released code's step 2 (arXiv 2403.07378v1).  As there, one
block after the other: all layers of a block are refitted at once, to what they read while the
block is dense and the blocks before it are refitted.  The target is what W says to these inputs:
the drift of the inputs is not repaired, and the task may gain or lose.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import LowRankLinear
from prehab_lib.progress import progress
from prehab_lib.rivals import shared
from prehab_lib.rivals.shared import Cuts, check_given, low_rank_layers
from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.influence import block_of
from prehab_lib.statistics.inputs import input_statistics
from prehab_lib.statistics.tokens import warn_if_few_tokens

EPS, EPS32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps


@torch.no_grad()
def closed_form(
    model: nn.Module, *, decompositions: Cuts, batches: Iterable | None = None, **_
) -> None:
    """Refit every U, in place, block by block in the model's order: U ← argmin ‖X̃ (W − U V)ᵀ‖_F.

    X̃ are the layer's inputs with all layers of its own block dense and those before it refitted
    (`refit`); a layer in no numbered block is a block.  W is left · right of the decomposition; V,
    biases and dense layers stay.  If one layer fails, all get their U back.  The batches are gone
    over once for each block.  Memory: W and Grams of a block, a copy of every U.

    Raises ValueError naming what is missing, or a layer that is never called, gets NaN, or leaves
    its precision.  Warns where a layer sees fewer than 10 r tokens.
    """
    check_arguments(batches=batches)
    layers = low_rank_layers(model, decompositions, "refit")
    before = {name: layer.U.weight.clone() for name, layer in layers.items()}
    seen: dict[str, tuple[int, int]] = {}  # layer -> (tokens, rank)
    blocks: dict[str, list[str]] = {}
    for name in layers:
        blocks.setdefault(block_of(name) or name, []).append(name)
    try:
        for names in progress(list(blocks.values()), "closed form"):
            dense = {name: _dense(layers[name], decompositions[name]) for name in names}
            with shared.replaced(model, dense):
                read = input_statistics(model, dense, batches, {"gram"})
            for name in names:
                layer, (statistics, _) = layers[name], read[name]
                seen[name] = statistics["tokens"], layer.rank
                _update(name, layer, dense[name].weight, statistics["gram"])
    except BaseException:
        for name, layer in layers.items():
            layer.U.weight.copy_(before[name])
        raise
    warn_if_few_tokens("layers were refitted to", seen, "rank", stacklevel=3)


def check_arguments(batches=None) -> None:
    """Raises ValueError naming what the recovery will ask for, before anything is cut."""
    check_given("recovery 'closed_form'", batches=batches)


def _dense(layer: LowRankLinear, decomposition: Decomposition) -> nn.Linear:
    """In a function of its own, so that a lazy decomposition is gone before the next is made."""
    cut = shared.whole(decomposition)
    return shared.as_linear(layer, cut.left @ cut.right)


def _update(name: str, layer: LowRankLinear, W: Tensor, gram: Tensor) -> None:
    U, V = on_factor_device(layer.U.weight), on_factor_device(layer.V.weight)
    eps = torch.finfo(layer.V.weight.dtype).eps
    new = refit(on_factor_device(W), U, V, gram, eps).to(layer.U.weight)
    if not torch.isfinite(new).all():
        raise ValueError(f"layer {name!r}: the refitted factor is not finite in {new.dtype}")
    layer.U.weight.copy_(new)


def refit(W: Tensor, U: Tensor, V: Tensor, gram: Tensor, eps_V: float = EPS) -> Tensor:
    """U' = U + (W − U V) G Vᵀ (V G Vᵀ)⁺ (m, r), which minimises tr (W − U' V) G (W − U' V)ᵀ, as U
    where the data leave a choice.

    W (m, n), U (m, r), V (r, n), G = gram (n, n), all float64.  The least squares of W L on V L,
    with L Lᵀ = G.  What lies in the round-off of the Gram is no data: with inputs scaled to a unit
    diagonal it is of the order eps √n, however far one input is above the rest.  eps_V: of V's
    dtype; a row of V L that is no more than its round-off is no data either.
    """
    eps = EPS
    scale = gram.diagonal().clamp_min(0).sqrt()  # (n,)
    unit = torch.where(scale > 0, 1 / scale, 0)
    correlation = unit[:, None] * gram * unit
    eigenvalues, Q = torch.linalg.eigh((correlation + correlation.T) / 2)
    shown = eigenvalues > 10 * eps * len(gram) ** 0.5
    L = scale[:, None] * Q[:, shown] * eigenvalues[shown].sqrt()  # (n, k)
    R = V @ L  # (r, k)
    energy = R.norm(dim=1)  # rows are taken at one scale: how the product is split means nothing
    rounded = eps_V * (V * scale).norm(dim=1)  # what is left of a row whose terms cancel
    whole = 10 * min(eps_V, EPS32) * (W * scale).norm()  # and of a component that nothing shows
    heard = (energy > rounded) & (energy * U.norm(dim=0) > whole)
    unit = torch.where(heard, 1 / energy, 0)
    inverse = torch.linalg.pinv(unit[:, None] * R, rtol=(10 * len(R) * eps) ** 0.5)  # (k, r)
    return U + (W @ L - U @ R) @ inverse * unit
