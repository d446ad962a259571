"""The rulers: by which measure is a layer's error E = W − Ŵ small?  One function and one line each.

A ruler turns a layer's statistics into the two matrices of the kernel ‖P E Q‖_F², which
`decomposition` solves for every rank at once.  Table I prints the papers' own forms.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from prehab_lib.decomposition import Decomposition, Weighting, factorise
from prehab_lib.inputs import check_choice, check_options
from prehab_lib.layers import linear_layers
from prehab_lib.progress import progress
from prehab_lib.roots import invertible_root, on_factor_device, psd_root
from prehab_lib.stats import LayerStats

__all__ = ["WEIGHTINGS", "Decomposition", "Weighting", "decompose", "decompose_all", "error"]

Ruler = str | Weighting  # a key of `WEIGHTINGS`, or one's own
Stats = Mapping[str, LayerStats] | None  # by layer; None for rulers that need none


def identity(stats: LayerStats | None = None) -> Weighting:
    """Plain SVD's ruler: squared error of the weights, ‖E‖_F².  Needs no statistic.

    Source: Table I, row "SVD" (Eckart and Young).
    """
    return Weighting()


def fisher(stats: LayerStats) -> Weighting:
    """FWSVD's ruler: Σ_ij f_j E_ij², one weight f_j = Σ_i F_ij for each input j.

    Source: Table I, row "FWSVD" (arXiv 2207.00112), which prints Σ F_ij E_ij²; that has no closed
    form, and the method shares the weights as here.  stats.fisher_in (n,).
    """
    return Weighting(right=_diagonal(stats.need("fisher_in", "FWSVD's ruler")))


def fisher_out(stats: LayerStats) -> Weighting:
    """The other reading of FWSVD: Σ_ij f_i E_ij², a weight f_i = Σ_j F_ij for each output i.

    stats.fisher_out (m,); weights below a millionth of their mean are raised to it: P is undone.
    """
    f = stats.need("fisher_out", "the output-side Fisher ruler")
    return Weighting(left=_diagonal(f, floor=1e-6))


def fisher_two_sided(stats: LayerStats) -> Weighting:
    """Both sides: Σ_ij f_i f_j E_ij², as the code of LoRA-FWSVD does."""
    return Weighting(left=fisher_out(stats).left, right=fisher(stats).right)


def kronecker(stats: LayerStats, ridge: float = 1e-6) -> Weighting:
    """GFWSVD's ruler: vec(E)ᵀ (A ⊗ B) vec(E) = ‖L_Bᵀ E L_A‖_F², A ⊗ B near the Fisher matrix.

    Source: Table I, row "GFWSVD" (arXiv 2505.17974).  stats.kron_in = A (n, n), stats.kron_out = B
    (m, m).  B is undone: a singular one gets `ridge` times its mean eigenvalue on the diagonal.
    """
    A, B = (stats.need(name, "GFWSVD's ruler") for name in ("kron_in", "kron_out"))
    return Weighting(left=invertible_root(B, ridge).T, right=psd_root(A))


def activation(stats: LayerStats, alpha: float = 0.5) -> Weighting:
    """ASVD's ruler: inputs scaled by s_j = (mean |x_j|)^α, Σ_ij s_j² E_ij².

    Source: arXiv 2312.05821; α = 0 is plain SVD.  stats.mean_abs (n,).
    """
    return Weighting(right=_diagonal(stats.need("mean_abs", "ASVD's ruler"), alpha))


def activation_max(stats: LayerStats, alpha: float = 0.5) -> Weighting:
    """ASVD's variant with s_j = (max |x_j|)^α.  stats.max_abs (n,)."""
    return Weighting(right=_diagonal(stats.need("max_abs", "ASVD's ruler by maxima"), alpha))


def gram(stats: LayerStats) -> Weighting:
    """SVD-LLM's ruler: squared error of the *output*, tr E G Eᵀ = ‖E L‖_F², L Lᵀ = G.

    Source: Table I, row "SVD-LLM" (arXiv 2403.07378); also SVD-LLM V2 (2503.12340) and Swift-SVD
    (2604.01609), by other roots of G.  stats.gram (n, n): mean of x xᵀ over calibration tokens.
    """
    return Weighting(right=stats.gram_root, gram=stats.need("gram", "SVD-LLM's ruler"))


def gram_logit(stats: LayerStats, ridge: float = 1e-3) -> Weighting:
    """IO-SVD's ruler: tr(C_o E G Eᵀ) = ‖L_oᵀ E L‖_F², the output's error as the logits feel it.

    Source: arXiv 2605.15626.  stats.gram = G (n, n), stats.logit_gram (m, m).  `ridge` times its
    mean eigenvalue is added to C_o's diagonal, as in the paper: where the logits feel nothing an
    output must not grow without bound.  The authors' value is not known.
    """
    C = on_factor_device(stats.need("logit_gram", "IO-SVD's ruler"))
    damped = C + ridge * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)
    G = stats.need("gram", "IO-SVD's ruler")
    return Weighting(left=invertible_root(damped).T, right=stats.gram_root, gram=G)


RULERS = (identity, fisher, fisher_out, fisher_two_sided, kronecker, activation, activation_max)
RULERS += (gram, gram_logit)
WEIGHTINGS: dict[str, Callable[..., Weighting]] = {ruler.__name__: ruler for ruler in RULERS}


def decompose(
    W: Tensor,
    stats: LayerStats | None = None,
    weighting: Ruler = "gram",
    dtype: torch.dtype = torch.float64,
    most: int | None = None,
    kernel: Callable[..., Decomposition] = factorise,
    **options,
) -> Decomposition:
    """Factorise W (m, n) under a ruler; every rank is then a slice.

    dtype: of the factors and of what is computed for them.  float32 halves the memory; under a Gram
    of condition 1e8 its answer stays within 1e-4 of the least error at 20 to 80 % removed.  most:
    components to make, the first; None for all.  kernel: `decomposition.factorise`, or
    `scale.lean.factorise` for large weights.  options go to the weighting.
    Raises ValueError for an unknown weighting, a missing statistic, another shape, or NaN.
    """
    return kernel(on_factor_device(W, W.dtype), _ruler(stats, weighting, options), dtype, most)


def decompose_all(
    model: nn.Module,
    stats: Stats,
    weighting: str = "gram",
    layers: Iterable[str] | None = None,
    **options,
) -> dict[str, Decomposition]:
    """`decompose` for each layer: name -> `Decomposition`.

    layers: names, or None for those of `stats`, or the default.  options: those of `decompose`.
    Raises ValueError naming a layer that has no statistics or whose factorisation is not finite.
    """
    modules = linear_layers(model, list(stats) if layers is None and stats else layers)
    make = by_layer(stats, weighting, **options)
    watched = progress(modules.items(), "decompositions", len(modules))
    return {name: make(name, module) for name, module in watched}


def by_layer(stats: Stats, weighting: str = "gram", **options) -> Callable[..., Decomposition]:
    """A function (name, module, most=None) -> `Decomposition`, whose errors name the layer.

    Layers in a row share their Gram, moved to the weights, and its root; all would be too much.
    """
    last: dict = {}

    def make(name: str, module: nn.Linear, most: int | None = None) -> Decomposition:
        try:
            if stats is not None and name not in stats:
                raise ValueError("no statistics were collected for it")
            statistics = LayerStats() if stats is None else stats[name]
            gram = statistics.gram
            if gram is not None and "root" not in statistics.derived:
                if last.get("gram") is not gram:
                    here = on_factor_device(torch.empty(0, device=module.weight.device)).device
                    last.update(gram=gram, shared=dict(gram=gram.to(here), derived={}))
                statistics = copy(statistics)  # with statistics of one's own
                vars(statistics).update(last["shared"])
            cut = decompose(module.weight, statistics, weighting, most=most, **options)
            return replace(cut, ruler=weighting) if isinstance(weighting, str) else cut
        except ValueError as problem:
            raise ValueError(f"layer {name!r}: {problem}") from problem

    return make


def error(
    W: Tensor, W_hat: Tensor, stats: LayerStats | None = None, weighting: Ruler = "gram", **options
) -> float:
    """The ruler itself, squared: ‖P (W − Ŵ) Q‖_F², for W and Ŵ (m, n)."""
    ruler = _ruler(stats, weighting, options)
    if W.shape != W_hat.shape:
        other = f"what stands for it {tuple(W_hat.shape)}"
        raise ValueError(f"W has shape {tuple(W.shape)}, and {other}")
    return float(ruler.apply(on_factor_device(W) - on_factor_device(W_hat)).square().sum())


def _ruler(stats: LayerStats | None, weighting: Ruler, options: dict) -> Weighting:
    if isinstance(weighting, Weighting):
        check_options("the set of options for a Weighting", options, lambda: weighting)
        return weighting
    check_choice("weighting", weighting, WEIGHTINGS)
    ruler, name = WEIGHTINGS[weighting], f"the set of options for weighting {weighting!r}"
    check_options(name, options, ruler, {"stats"})
    return ruler(stats or LayerStats(), **options)


def _diagonal(f: Tensor, power: float = 0.5, floor: float = 0.0) -> Tensor:
    """diag(f^power), (k, k), in float64.  Raises ValueError where f is NaN, infinite or negative.

    floor: least f as a fraction of the mean; all ones where f is zero.
    """
    f = on_factor_device(f)
    if not torch.isfinite(f).all() or (f < 0).any():
        problem = "the statistic has NaN, infinite or negative entries"
        raise ValueError(f"{problem}: look at the calibration data")
    if floor:
        f = f.clamp_min(floor * f.mean()) if f.mean() > 0 else torch.ones_like(f)
    return torch.diag(f**power)
