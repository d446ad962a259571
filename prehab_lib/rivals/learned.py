"""Learned ranks: a gate on the components of every layer, whose position is trained by the task
loss under one budget.

W(γ) = left diag(T(γ)) right, with the layer's decomposition frozen and one number γ a layer to
train (`gates`).  Dobi-SVD (arXiv 2502.02723) gates the singular values of activations (`dobi`);
gating those of the whitened weights is the companion's own cheap version: no SVD in the loop.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_options
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.rivals.gates import Gates, Learned, Settings, learn
from prehab_lib.rivals.ranks import shape_of
from prehab_lib.rivals.trial import check_given
from prehab_lib.rivals.truncation import gate


def learn_ranks(
    decompositions: Mapping[str, Decomposition],
    removed: float,
    *,
    model: nn.Module | None = None,
    stats=None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation=None,
    start: Mapping[str, int | None] | None = None,
    **settings,
) -> Learned:
    """`learned`, with the way it took: γ of every layer, and loss and budget at every step."""
    chosen = Settings(**settings)
    check_given("allocation 'learned'", model=model, task_loss=task_loss, batches=batches)
    shapes = {name: shape_of(found) for name, found in decompositions.items()}
    gates = Gates(shapes, removed, chosen.accounting, start)
    if not gates.terms:
        return Learned(dict.fromkeys(decompositions), {}, [])

    def in_place() -> AbstractContextManager:
        return gated(model, decompositions, gates)

    found = learn(model, gates, in_place, task_loss, batches, chosen, "allocation 'learned'")
    return Learned(
        {name: found.ranks.get(name) for name in decompositions}, found.gammas, found.rows
    )


def learned(
    decompositions: Mapping[str, Decomposition], removed: float, **given
) -> dict[str, int | None]:
    """Ranks found by gradient: where does the loss want the cut of each layer, if all together must
    fit the budget?

    Needs model, task_loss and batches (the gates see no other data; validation is not looked at).
    Options: those of `Settings`, and start, a plan {layer: rank or None} to begin with instead of
    equal shares.
    The layers' W(γ) run as two thin products: a step costs up to twice a plain one, and (m + n)
    min(m, n) numbers a layer in the model's dtype, for all layers at once, beside the weights and
    one batch's activations.

    Source: Dobi-SVD (arXiv 2502.02723), objective and start; here on whitened weights, with β
    annealed and ranks fitted to the budget exactly afterwards.  The weights come back bit by bit,
    whatever happens.
    Raises ValueError for a bad `removed` or option, a loss that is not finite, or naming what is
    missing.
    """
    return learn_ranks(decompositions, removed, **given).ranks


def check_arguments(task_loss=None, batches=None, validation=None, start=None, **settings) -> None:
    check_options("options", settings, Settings)
    Settings(**settings)
    check_given("allocation 'learned'", task_loss=task_loss, batches=batches)


class GatedLinear(LowRankLinear):
    """y = U (T(γ) ∘ V x) + b at full rank; γ lives in `gates`, under the layer's name."""

    gates: Gates
    name: str

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        h = self.V(x)
        wide = torch.float64 if h.dtype == torch.float64 else torch.float32
        gamma = (self.gates.share(self.name) * self.rank).to(h.device, wide)
        return self.U(h * gate(gamma, self.rank, self.gates.beta).to(h.dtype))


@contextmanager
def gated(
    model: nn.Module, decompositions: Mapping[str, Decomposition], gates: Gates
) -> Iterator[None]:
    """Inside, each layer with a gate runs through its decomposition; outside are the very same
    dense modules again.
    """
    modules = linear_layers(model, gates.terms)
    try:
        for name, module in modules.items():
            full = min(module.weight.shape)
            factors = decompositions[name].truncate(full).balanced()
            layer = GatedLinear.in_place_of(module, factors)
            layer.gates, layer.name = gates, name
            replace_module(model, name, layer)
        yield
    finally:
        for name, module in modules.items():
            replace_module(model, name, module)
