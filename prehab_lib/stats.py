"""What calibration data says about each layer: the one place that knows which statistic comes from
which pass.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_whole, warn_if_few_tokens
from prehab_lib.layers import linear_layers
from prehab_lib.roots import psd_eigen, psd_root
from prehab_lib.statistics.activations import INPUT_STATISTICS, input_statistics, version_of
from prehab_lib.statistics.fisher import kronecker_factors, sample_means
from prehab_lib.statistics.gradients import GradientPass
from prehab_lib.statistics.influence import BlockInfluence
from prehab_lib.statistics.logit_gram import USUAL, Probe, logit_grams

KRONECKER = {"kron_in", "kron_out"}
LOSS_STATISTICS = {"fisher_in", "fisher_out", "grad"} | KRONECKER
GRADIENT_STATISTICS = LOSS_STATISTICS | {"logit_gram"}
KNOWN = [*INPUT_STATISTICS, "influence", *sorted(GRADIENT_STATISTICS)]


@dataclass
class LayerStats:
    """Statistics of one layer W (m, n); None until collected.

    Gram, scales and logit Gram are means over tokens (padding excluded); Fisher, Kronecker factors
    and `grad` are means over samples.  Layers that read the same tensor hold the same `gram` object
    and share what is derived from it.
    """

    gram: Tensor | None = None  # (n, n)   mean of x xᵀ, uncentred
    mean_abs: Tensor | None = None  # (n,)
    max_abs: Tensor | None = None  # (n,)
    fisher_in: Tensor | None = None  # (n,)   Σ_i F_ij
    fisher_out: Tensor | None = None  # (m,)   Σ_j F_ij
    kron_in: Tensor | None = None  # (n, n)   A of A ⊗ B
    kron_out: Tensor | None = None  # (m, m)   B of A ⊗ B
    logit_gram: Tensor | None = (
        None  # (m, m)   mean of Jᵀ H J, H the Hessian of the logits' softmax
    )
    grad: Tensor | None = None  # (m, n)
    influence: float | None = None
    tokens: int | None = None
    derived: dict = field(default_factory=dict, repr=False, compare=False)

    def need(self, name: str, wanted_by: str) -> Tensor:
        """The statistic, or a ValueError that says how to collect it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"{wanted_by} needs the statistic {name!r}: collect it with stats.collect(..., needs={{{name!r}}})"
            )
        return value

    def gram_root(self, floor: float = 0.0) -> Tensor:
        """L (n, n) with L Lᵀ = gram, computed once for all layers that share the Gram.

        floor: where L must be invertible, raise the eigenvalues to at least this times their mean;
        L is then Q √λ.
        """
        gram = self.need("gram", "the root of the input Gram")
        if not floor:
            return self._once("root", lambda: psd_root(gram))
        eigenvalues, Q = self._once("eigen", lambda: psd_eigen(gram))
        return Q * eigenvalues.clamp_min(floor * eigenvalues.mean()).sqrt()

    def _once(self, name: str, compute: Callable):
        """`compute()`, kept for as long as `gram` is the same tensor, unchanged."""
        gram, version, value = self.derived.get(name, (None, None, None))
        if gram is not self.gram or version != version_of(gram):
            value = compute()
            self.derived[name] = (self.gram, version_of(self.gram), value)
        return value


def collect(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    needs: Iterable[str] = ("gram",),
    task_loss: Callable | None = None,
    *,
    fisher: str = "sample",
    kronecker: str = "alternating",
    iterations: int = 10,
    logit_probe: Probe = USUAL,
    dtype: torch.dtype = torch.float64,
) -> dict[str, LayerStats]:
    """Stream `batches` through the model in eval mode: layer name -> `LayerStats`.  Hooks come off
    whatever happens.

    layers: names, or None for the model's default.  needs: any fields of `LayerStats` in `KNOWN`.
    `attention_mask` in a batch excludes padding from the statistics of inputs.

    gram, mean_abs, max_abs, influence: one pass without gradients.  dtype=torch.float32 takes
        products of 4096 tokens in float32 and adds them in float64: twice as fast on a CPU and much
        faster on GPUs without float64 units, and up to 2 % from the optimum where one channel is
        3000 times louder than the others.
    fisher_in, fisher_out, grad: one pass with gradients of `task_loss(model, batch)`, for each
        sample on its own (a batch at once where the loss is declared
        `gradients.mean_over_samples`); float64 sums (float16 models: of a scaled loss).
        fisher="batch" squares the gradient of each batch's mean instead, as the released codes do:
        its mean is F / b + (1 − 1 / b) (∇L)² at batch size b, for comparison only.
    kron_in, kron_out: "alternating" iteration to the nearest A ⊗ B, two passes an iteration, at
        most `iterations` of them (see `fisher.kronecker_factors`); "kfac" takes mean x xᵀ over
        tokens and mean Σ_t g gᵀ over samples: one pass, and another matrix than GFWSVD's.
    logit_gram: one pass with gradients of the model's own logits along random signs
        (`logit_gram.Probe`): no task_loss, and backward through activations only.

    Memory beyond the model's own: per distinct input n² + 2n, per layer n + m, n² + m² or m n
    numbers for the statistics asked; with gradients also one batch's inputs and output gradients,
    and one weight's gradient at a time.

    Raises ValueError for an unknown need, no task_loss where gradients are wanted or one that is no
    scalar, no batch, no token, a mask that is not (batch, tokens) of 0 and 1, a one-shot generator
    where several passes are due, or NaN or infinite activations or gradients (naming the layer).
    Warns where a Gram is made of fewer than 10 n tokens.
    """
    needs = {needs} if isinstance(needs, str) else set(needs)
    if unknown := needs - set(KNOWN):
        raise ValueError(
            f"needs = {sorted(unknown)[0]!r} is not known: choose from {', '.join(KNOWN)}"
        )
    _check_options(needs, task_loss, fisher, kronecker, iterations, dtype)
    modules = linear_layers(model, layers)
    if needs & GRADIENT_STATISTICS and iter(batches) is batches:
        raise ValueError(
            "these statistics need several passes over the batches: pass a list or a DataLoader"
        )

    kfac = bool(needs & KRONECKER) and kronecker == "kfac"
    influence = [BlockInfluence(model, modules)] if "influence" in needs else []
    read = input_statistics(model, modules, batches, _inputs_for(needs, kfac), influence, dtype)
    stats = {name: LayerStats(**found, derived=shared) for name, (found, shared) in read.items()}
    if "gram" in needs:
        seen = {name: (found.tokens, modules[name].in_features) for name, found in stats.items()}
        warn_if_few_tokens("layers saw", seen, "input channel", stacklevel=3)
    for watcher in influence:
        for name, value in watcher.result().items():
            stats[name].influence = value

    if "logit_gram" in needs:
        for name, C in logit_grams(model, modules, batches, logit_probe, dtype).items():
            stats[name].logit_gram = C

    def gradients(per_sample: bool = True) -> GradientPass:
        return GradientPass(model, modules, batches, task_loss, per_sample)

    moments = (needs & LOSS_STATISTICS) - KRONECKER | ({"kfac_out"} if kfac else set())
    if by_batch := {name for name in moments if name.startswith("fisher") and fisher == "batch"}:
        _add(stats, sample_means(gradients(per_sample=False), by_batch))
    if moments - by_batch:
        _add(stats, sample_means(gradients(), moments - by_batch))
    if needs & KRONECKER and not kfac:
        for name, (A, B) in kronecker_factors(gradients(), iterations).items():
            stats[name].kron_in, stats[name].kron_out = A, B
    return stats


def _inputs_for(needs: set[str], kfac: bool) -> set[str]:
    return needs & set(INPUT_STATISTICS) | ({"gram"} if kfac else set())


def _add(stats: dict[str, LayerStats], found: dict[str, dict[str, Tensor]]) -> None:
    for name, values in found.items():
        if "kfac_out" in values:
            stats[name].kron_in, stats[name].kron_out = stats[name].gram, values.pop("kfac_out")
        for statistic, value in values.items():
            setattr(stats[name], statistic, value)


def _check_options(
    needs: set[str], task_loss: Callable | None, fisher: str, kronecker: str, iterations: int, dtype
) -> None:
    if needs & LOSS_STATISTICS and task_loss is None:
        wanted = sorted(needs & LOSS_STATISTICS)[0]
        raise ValueError(
            f"the statistic {wanted!r} needs task_loss(model, batch): pass it to stats.collect"
        )
    for option, value, known in (
        ("fisher", fisher, ("sample", "batch")),
        ("kronecker", kronecker, ("alternating", "kfac")),
    ):
        if value not in known:
            raise ValueError(f"{option} = {value!r} is not known: choose one of {', '.join(known)}")
    check_whole(1, iterations=iterations)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype = {dtype!r}: sum in torch.float64, or in torch.float32 for speed")
