"""What the loss says about each component of a decomposition: one number each, to first order and
with its sign.

W = left · right is a sum of k rank-one matrices left_i right_i.  Without component i the loss
changes by ΔL_i = −⟨G, left_i right_i⟩ = −left_iᵀ G right_iᵀ, G = ∂L/∂W: no root, no inverse, no
solve.  In the letters of Zero Sum SVD (arXiv 2602.02848) that is −σ_i g_i with g_i = ∂L/∂σ_i = u_iᵀ
H v_i, H = G L⁻ᵀ.  Σ_i ΔL_i = −⟨G, W⟩ under every ruler.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from prehab_lib.decomposition import Decomposition
from prehab_lib.progress import progress
from prehab_lib.rivals.ranks import Cuts, Stats
from prehab_lib.stats import LayerStats


def loss_changes(decompositions: Cuts, stats: Stats | None) -> dict[str, Tensor]:
    """ΔL_i of every component: layer -> (k,), float64 on the CPU, in the unit of the loss whose
    `grad` (m, n), a mean over samples, was collected.

    Each layer is factorised once; a lazy one stays on its shelf for surgery as far as there is
    room.  Cost beyond that: one product (m, n) · (n, k) a layer.  Raises ValueError naming a layer
    whose `grad` was not collected, has another shape, or is not finite, before any is factorised.
    """
    gradients = {}
    for name, decomposition in decompositions.items():
        statistics = (stats or {}).get(name) or LayerStats()
        G = statistics.need("grad", f"the loss change of the components of layer {name!r}")
        gradients[name], seen, shape = G, tuple(G.shape), tuple(decomposition.shape)
        if seen != shape:
            raise ValueError(
                f"layer {name!r}: its gradient has shape {seen} and its weight {shape}"
            )
        if not torch.isfinite(G).all():
            bad = f"layer {name!r}: its gradient has NaN or infinite entries"
            raise ValueError(f"{bad}: look at the data and the loss")
    changes = {}
    for name in progress(decompositions, "loss changes"):
        cut = whole(decompositions[name])
        left, right = cut.left.double(), cut.right.double()  # (m, k), (k, n)
        G = gradients[name].to(left)
        changes[name] = -(left * (G @ right.T)).sum(0).cpu()
    return changes


def sigma_gradients(changes: Mapping[str, Tensor], decompositions: Cuts) -> dict[str, Tensor]:
    """g_i = ∂L/∂σ_i = −ΔL_i / σ_i, layer -> (k,): the slope of the loss along u_i v_iᵀ L⁻¹, which
    grows σ_i alone.

    changes: from `loss_changes`.  NaN where σ_i = 0: the ruler does not see that component.
    """
    slopes = {}
    for name, change in changes.items():
        sigma = decompositions[name].sigma.to(change)
        slopes[name] = torch.where(sigma > 0, -change / sigma, torch.nan)
    return slopes


def ordered(decomposition: Decomposition, order: Sequence[int] | Tensor) -> Decomposition:
    """The same sum with its components in another order; order (k,) is a permutation of 0 … k − 1.

    `truncate(r)` then keeps the first r of that order, and `tail_error(r)` is what the others
    carry; `sigma` no longer descends.  A lazy decomposition gives a lazy one.  Raises ValueError
    where `order` is no permutation.
    """
    order = torch.as_tensor(order)
    k = min(decomposition.shape)
    if sorted(order.tolist()) != list(range(k)):
        raise ValueError(f"order is no permutation of this layer's {k} components")

    def make(most: int | None = None) -> Decomposition:
        cut = whole(decomposition)  # whatever `most` asks: the first in this order may be last
        at = order.to(cut.sigma.device)
        return Decomposition(cut.left[:, at], cut.right[at], cut.sigma[at])

    if isinstance(decomposition, Decomposition):
        return make()
    return type(decomposition)(make, decomposition.shape, decomposition.shelf)


def whole(decomposition: Decomposition) -> Decomposition:
    """The decomposition with its factors: two looks at a lazy one could make it twice."""
    return decomposition if isinstance(decomposition, Decomposition) else decomposition.whole()
