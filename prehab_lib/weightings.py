"""The rulers: by which measure is a layer's error small?  One function and one line in `WEIGHTINGS`
each.

A ruler turns a layer's statistics into the two matrices of the kernel ‖P (W − Ŵ) Q‖_F²
(`decomposition`), which solves it for every rank at once.  Table I of the paper prints the papers'
own forms.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.decomposition import Decomposition, Weighting, factorise
from prehab_lib.layers import linear_layers
from prehab_lib.progress import progress
from prehab_lib.roots import invertible_root, on_factor_device, psd_root
from prehab_lib.scale.lazy import KEEP, LazyDecomposition, Shelf
from prehab_lib.stats import LayerStats

__all__ = [
    "WEIGHTINGS",
    "Decomposition",
    "Weighting",
    "decompose",
    "decompose_all",
    "decompose_lazily",
    "error",
    "weighting_named",
]


def identity(stats: LayerStats | None = None) -> Weighting:
    """Plain SVD's ruler: squared error of the weights, ‖W − Ŵ‖_F².

    Source: Table I, row "SVD" (Eckart and Young).  Needs no statistic.
    """
    return Weighting()


def fisher(stats: LayerStats) -> Weighting:
    """FWSVD's ruler: Σ_ij f_j (W − Ŵ)_ij², one weight f_j = Σ_i F_ij for each input j.

    Source: Table I, row "FWSVD" (arXiv 2207.00112), which prints the element-wise form Σ F_ij (W −
    Ŵ)_ij²; that has no closed form, and the method shares the weights as here.  stats.fisher_in
    (n,): per-sample squares, summed over outputs.
    """
    return Weighting(right=_diagonal(stats.need("fisher_in", "FWSVD's ruler")))


def fisher_out(stats: LayerStats) -> Weighting:
    """The other reading of FWSVD: one weight for each output i, Σ_ij f_i (W − Ŵ)_ij² with f_i = Σ_j
    F_ij.

    stats.fisher_out (m,).  P must be undone, so weights below a millionth of their mean are raised
    to it.
    """
    return Weighting(
        left=_diagonal(stats.need("fisher_out", "the output-side Fisher ruler"), floor=1e-6)
    )


def fisher_two_sided(stats: LayerStats) -> Weighting:
    """Both sides: Σ_ij f_i f_j (W − Ŵ)_ij², as the code of LoRA-FWSVD does.  stats.fisher_in (n,),
    stats.fisher_out (m,).
    """
    return Weighting(left=fisher_out(stats).left, right=fisher(stats).right)


def kronecker(stats: LayerStats, ridge: float = 1e-6) -> Weighting:
    """GFWSVD's ruler: vec(E)ᵀ (A ⊗ B) vec(E) = tr(Eᵀ B E A) = ‖L_Bᵀ E L_A‖_F², E = W − Ŵ, A ⊗ B
    near the Fisher matrix.

    Source: Table I, row "GFWSVD" (arXiv 2505.17974).  stats.kron_in = A (n, n), stats.kron_out = B
    (m, m).  B has to be undone: where it is singular it gets `ridge` times its mean eigenvalue on
    the diagonal (`roots.invertible_root`).
    """
    A, B = (stats.need(name, "GFWSVD's ruler") for name in ("kron_in", "kron_out"))
    return Weighting(left=invertible_root(B, ridge).T, right=psd_root(A))


def activation(stats: LayerStats, alpha: float = 0.5) -> Weighting:
    """ASVD's ruler: inputs scaled by s_j = (mean |x_j|)^α, Σ_ij s_j² (W − Ŵ)_ij².

    Source: arXiv 2312.05821; α = 0 is plain SVD.  stats.mean_abs (n,).
    """
    return Weighting(right=torch.diag(_finite(stats.need("mean_abs", "ASVD's ruler")) ** alpha))


def activation_max(stats: LayerStats, alpha: float = 0.5) -> Weighting:
    """ASVD's variant with s_j = (max |x_j|)^α.  stats.max_abs (n,)."""
    return Weighting(
        right=torch.diag(_finite(stats.need("max_abs", "ASVD's ruler by maxima")) ** alpha)
    )


def gram(stats: LayerStats) -> Weighting:
    """SVD-LLM's ruler: squared error of the layer's *output*, tr (W − Ŵ) G (W − Ŵ)ᵀ = ‖(W − Ŵ)
    L‖_F² with L Lᵀ = G.

    Source: Table I, row "SVD-LLM" (arXiv 2403.07378); also SVD-LLM V2 (2503.12340) and Swift-SVD
    (2604.01609), which reach the same map by other roots of G.  stats.gram (n, n): mean of x xᵀ
    over calibration tokens.
    """
    return Weighting(right=stats.gram_root, gram=stats.need("gram", "SVD-LLM's ruler"))


def gram_logit(stats: LayerStats, ridge: float = 1e-3) -> Weighting:
    """IO-SVD's ruler: tr(C_o E G Eᵀ) = ‖L_oᵀ E L‖_F², the squared error of the output as the logits
    feel it, E = W − Ŵ.

    Source: arXiv 2605.15626.  stats.gram = G (n, n), stats.logit_gram (m, m).  C_o is that matrix
    plus `ridge` times its mean eigenvalue on the diagonal, as the paper damps it: where the logits
    feel nothing an output must not grow without bound. The authors' value is not known.
    """
    C = on_factor_device(stats.need("logit_gram", "IO-SVD's ruler"))
    damped = C + ridge * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)
    G = stats.need("gram", "IO-SVD's ruler")
    return Weighting(left=invertible_root(damped).T, right=stats.gram_root, gram=G)


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "identity": identity,
    "fisher": fisher,
    "fisher_out": fisher_out,
    "fisher_two_sided": fisher_two_sided,
    "kronecker": kronecker,
    "activation": activation,
    "activation_max": activation_max,
    "gram": gram,
    "gram_logit": gram_logit,
}


def weighting_named(name: str) -> Callable[..., Weighting]:
    """The function behind a name.  Raises ValueError that lists the known names."""
    if name not in WEIGHTINGS:
        raise ValueError(
            f"weighting = {name!r} is not known: choose one of {', '.join(WEIGHTINGS)}"
        )
    return WEIGHTINGS[name]


def decompose(
    W: Tensor,
    stats: LayerStats | None = None,
    weighting: str | Weighting = "gram",
    dtype: torch.dtype = torch.float64,
    most: int | None = None,
    **options,
) -> Decomposition:
    """Factorise W (m, n) under a ruler; every rank is then a slice.  For the cost see
    `decomposition.factorise`.

    dtype: of the factors and of what is computed for them; float64 by default.  float32 halves the
    memory and saves time. Under a Gram of condition 1e8 its answer stays within 1e-4 of the least
    error at 20 to 80 % removed, and sigma is right to 1e-4 of sigma[0]: the tail is where it costs.
    With n > 2 m its eigenvectors are in float64 all the same. most: components to make, the first,
    to the same bits; None for all.  It saves memory.  options go to the weighting. Raises
    ValueError for an unknown weighting, a statistic that was not collected, a ruler of another
    shape, or NaN.
    """
    return factorise(on_factor_device(W, W.dtype), _ruler(stats, weighting, options), dtype, most)


def decompose_all(
    model: nn.Module,
    stats: dict[str, LayerStats] | None,
    weighting: str = "gram",
    layers: Iterable[str] | None = None,
    **options,
) -> dict[str, Decomposition]:
    """`decompose` for each layer: name -> `Decomposition`.  layers: names, or None for those of
    `stats`, or the default.

    options: those of `decompose`, `dtype` among them.  Layers in a row that share a Gram share its
    root, which goes with them. Raises ValueError naming a layer that has no statistics or whose
    factorisation is not finite.
    """
    modules, root = _modules(model, stats, layers), {}
    return {
        name: _decompose(name, module, stats, weighting, options, root)
        for name, module in progress(modules, "decompositions")
    }


def decompose_lazily(
    model: nn.Module,
    stats: dict[str, LayerStats] | None,
    weighting: str = "gram",
    layers: Iterable[str] | None = None,
    keep: int = KEEP,
    **options,
) -> dict[str, LazyDecomposition]:
    """As `decompose_all`, to the last bit, but each is made when it is looked at; of those, `keep`
    bytes at most stay.

    The model's weights must stay as they are for as long as the answer is in use.
    """
    shelf, root = Shelf(keep), {}
    return {
        name: LazyDecomposition(
            partial(_decompose, name, module, stats, weighting, options, root),
            tuple(module.weight.shape),
            shelf,
        )
        for name, module in _modules(model, stats, layers)
    }


def _modules(
    model: nn.Module, stats: dict | None, layers: Iterable[str] | None
) -> list[tuple[str, nn.Linear]]:
    names = list(stats) if layers is None and stats else layers
    return list(linear_layers(model, names).items())


def _decompose(
    name: str,
    module: nn.Linear,
    stats: dict | None,
    weighting: str,
    options: dict,
    root: dict,
    most: int | None = None,
) -> Decomposition:
    try:
        seen = _with_one_root(_stats_of(stats, name), root)
        return decompose(module.weight, seen, weighting, most=most, **options)
    except ValueError as problem:
        raise ValueError(f"layer {name!r}: {problem}") from problem


def _with_one_root(stats: LayerStats, root: dict) -> LayerStats:
    """The same statistics, their root in `root`, which holds one: kept with each Gram, roots would
    double the memory.
    """
    if stats.gram is None or "root" in stats.derived:
        return stats
    if "root" in root and root["root"][0] is not stats.gram:
        root.clear()
    return replace(stats, derived=root)


def error(
    W: Tensor,
    W_hat: Tensor,
    stats: LayerStats | None = None,
    weighting: str | Weighting = "gram",
    **options,
) -> float:
    """The ruler itself, squared: ‖P (W − Ŵ) Q‖_F², for W and Ŵ (m, n)."""
    ruler = _ruler(stats, weighting, options)
    return float(ruler.apply(on_factor_device(W) - on_factor_device(W_hat)).square().sum())


def _ruler(stats: LayerStats | None, weighting: str | Weighting, options: dict) -> Weighting:
    if isinstance(weighting, Weighting):
        return weighting
    return weighting_named(weighting)(stats or LayerStats(), **options)


def _diagonal(f: Tensor, floor: float = 0.0) -> Tensor:
    """diag(√f), (k, k), in float64; floor: least value as a fraction of the mean (all ones where f
    is zero).
    """
    f = _finite(f)
    if floor:
        f = f.clamp_min(floor * f.mean()) if f.mean() > 0 else torch.ones_like(f)
    return torch.diag(f.sqrt())


def _finite(weights: Tensor) -> Tensor:
    """In float64.  Raises ValueError for a weight that is NaN, infinite or negative."""
    weights = on_factor_device(weights)
    if not torch.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(
            "the statistic has NaN, infinite or negative entries: look at the calibration data"
        )
    return weights


def _stats_of(stats: dict[str, LayerStats] | None, name: str) -> LayerStats:
    if stats is None:
        return LayerStats()
    if name not in stats:
        raise ValueError("no statistics were collected for it")
    return stats[name]
