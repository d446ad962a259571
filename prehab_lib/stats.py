"""What calibration data says about each layer, by the tables of `statistics`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.layers import linear_layers
from prehab_lib.roots import psd_eigen, psd_root
from prehab_lib.statistics import KNOWN, PASSES
from prehab_lib.statistics.fisher import LOSS_STATISTICS
from prehab_lib.statistics.inputs import input_statistics, version_of
from prehab_lib.statistics.logit_gram import USUAL, Probe
from prehab_lib.statistics.tokens import warn_if_few_tokens

GRADIENT_STATISTICS = frozenset(PASSES)  # those that take passes of their own, with gradients


@dataclass
class LayerStats:
    """Statistics of one layer W (m, n); None until collected.

    Gram, scales and logit Gram are means over tokens (padding excluded); Fisher, Kronecker factors
    and `grad` over samples.  Layers that read one tensor share one `gram` and what is derived.
    """

    gram: Tensor | None = None  # (n, n)   mean of x xᵀ, uncentred
    mean_abs: Tensor | None = None  # (n,)
    max_abs: Tensor | None = None  # (n,)
    fisher_in: Tensor | None = None  # (n,)   Σ_i F_ij
    fisher_out: Tensor | None = None  # (m,)   Σ_j F_ij
    kron_in: Tensor | None = None  # (n, n)   A of A ⊗ B
    kron_out: Tensor | None = None  # (m, m)   B of A ⊗ B
    logit_gram: Tensor | None = None  # (m, m)   mean of Jᵀ H J, H that of the logits' softmax
    grad: Tensor | None = None  # (m, n)
    influence: float | None = None
    tokens: int | None = None
    derived: dict = field(default_factory=dict, repr=False, compare=False)

    def need(self, name: str, wanted_by: str) -> Tensor:
        """The statistic, or a ValueError that says how to collect it."""
        value = getattr(self, name, None)  # a statistic of one's own is no field
        if value is None:
            remedy = f"collect it with stats.collect(..., needs={{{name!r}}})"
            raise ValueError(f"{wanted_by} needs the statistic {name!r}: {remedy}")
        return value

    def gram_root(self, floor: float = 0.0) -> Tensor:
        """L (n, n) with L Lᵀ = gram, computed once for all layers that share the Gram.

        floor: for an invertible L = Q √λ, the least eigenvalue as a fraction of their mean.
        """
        gram = self.need("gram", "the root of the input Gram")
        if not floor:
            return self._once("root", lambda: psd_root(gram))
        eigenvalues, Q = self._once("eigen", lambda: psd_eigen(gram))
        return Q * eigenvalues.clamp_min(floor * eigenvalues.mean()).sqrt()

    def _once(self, name: str, compute: Callable):  # while `gram` is the same tensor, unchanged
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
    iterations: int = 10,
    logit_probe: Probe = USUAL,
    dtype: torch.dtype = torch.float64,
) -> dict[str, LayerStats]:
    """Stream `batches` through the model in eval mode: layer name -> `LayerStats`.

    layers: names, or None for the model's default.  needs: names in `KNOWN`; those of the loss need
    task_loss(model, batch).  `attention_mask` in a batch excludes padding.  fisher: "batch" squares
    the gradient of each batch's mean, as the released codes do, which is F / b + (1 − 1 / b) (∇L)²
    at batch size b.  iterations: at most, of `fisher.kronecker_factors`.  logit_probe: of
    `logit_gram`.  dtype: of products of 4096 tokens; float32 is at least twice as fast, and up to
    2 % from the optimum where one channel is 3000 times louder than the others.

    Raises ValueError for an unknown need, a missing task_loss or one that is no scalar, no batch or
    token, a generator where several passes are due, or NaN or infinite activations or gradients
    (naming the layer).  Warns where a Gram is made of fewer than 10 n tokens.
    """
    needs = {needs} if isinstance(needs, str) else set(needs)
    for name in sorted(needs):
        check_choice("needs", name, KNOWN)
        if name in LOSS_STATISTICS and task_loss is None:
            remedy = "pass it to stats.collect"
            raise ValueError(f"the statistic {name!r} needs task_loss(model, batch): {remedy}")
    check_choice("fisher", fisher, ("sample", "batch"))
    check_whole(1, iterations=iterations)
    check_choice("dtype", dtype, (torch.float64, torch.float32))
    modules = linear_layers(model, layers)
    passes = {name: PASSES[name] for name in sorted(needs) if name in PASSES}
    if passes and iter(batches) is batches:
        problem = "these statistics need several passes over the batches"
        raise ValueError(f"{problem}: pass a list or a DataLoader")
    stats = {}
    inputs = input_statistics(model, modules, batches, needs, dtype=dtype)
    for name, (values, shared) in inputs.items():
        stats[name] = LayerStats(derived=shared)
        vars(stats[name]).update(values)
    if "gram" in needs:
        counts = {name: (stats[name].tokens, modules[name].in_features) for name in modules}
        warn_if_few_tokens("layers saw", counts, "input channel", stacklevel=3)
    settings = dict(task_loss=task_loss, fisher=fisher, iterations=iterations)
    settings |= dict(logit_probe=logit_probe, dtype=dtype)
    for run in dict.fromkeys(passes.values()):
        wanted = {name for name in passes if passes[name] is run}
        for name, values in run(model, modules, batches, wanted, **settings).items():
            vars(stats[name]).update(values)
    return stats
