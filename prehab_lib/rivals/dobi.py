"""Dobi-SVD: ranks that are learned by the task loss under one budget, one gate's position a layer.

Source: Dobi-SVD (arXiv 2502.02723).  Its own form truncates *activations*, gates_on="activations":
A = x Wᵀ of a batch becomes F = U diag(σ_i T_i) Vᵀ, at one thin SVD (t, m) a layer and step.
gates_on="weights" is cheaper: W(γ) = left diag(T(γ)) right on a frozen decomposition.  At whole
ranks the paper's new weights are Ŵ = U_k U_kᵀ W with U_k the principal directions of the outputs:
the whitened truncation of `weightings.gram`.  So surgery needs no code of its own.

Differences: β is annealed, SVDs are full, and ranks are fitted to the budget exactly afterwards.
U diag(σ T) Vᵀ is differentiated as a whole, not the SVD.  Only pairs of near-equal σ on both sides
of the gate are left to bound: there it is not continuous and has no gradient.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import linear_layers
from prehab_lib.rivals.gates import NAME, Gates, Settings, gate, learn
from prehab_lib.rivals.shared import Cuts, Ranks, check_given, replaced
from prehab_lib.statistics.tokens import padding_mask

LIMIT = 1e4  # most that σ_j / (σ_i − σ_j) counts: σ closer than a part in 10⁴ count as so far apart


def learned(
    decompositions: Cuts,
    removed: float,
    *,
    model: nn.Module | None = None,
    stats=None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation=None,
    **options,
) -> Ranks:
    """Ranks found by gradient: where the loss wants the cut of each layer, under one budget.

    Needs model, task_loss and batches; on activations batches without padding.  options: those of
    `Settings`.  On weights a step costs up to twice a plain one, and (m + n) min(m, n) numbers a
    layer in the model's dtype.  The weights come back bit by bit.
    Raises ValueError for a bad `removed` or option, a missing argument, or a loss not finite.
    """
    check_arguments(task_loss, batches)
    check_given(NAME, model=model)
    chosen = Settings(**options)
    shapes = {name: tuple(cut.shape) for name, cut in decompositions.items()}
    gates = Gates(shapes, removed, chosen.accounting)
    if not gates.costs:
        return dict.fromkeys(decompositions)
    in_place = partial(gated_weights, model, decompositions, gates)
    if chosen.gates_on == "activations":
        in_place, task_loss = partial(gated_activations, model, gates), _unpadded(task_loss)
    learn(model, gates, in_place, task_loss, batches, chosen)
    ranks = gates.whole_ranks()
    return {name: ranks.get(name) for name in decompositions}


def check_arguments(task_loss=None, batches=None, **options) -> None:
    """Raises ValueError for a bad option, or naming what is missing."""
    Settings(**options)
    check_given(NAME, task_loss=task_loss, batches=batches)


class GatedLinear(LowRankLinear):
    """y = U (T(γ) ∘ V x) + b at full rank; γ lives in `gates`, under the layer's name."""

    gates: Gates
    name: str

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        h = self.V(x)
        gamma = self.gates.share(self.name) * self.rank
        return self.U(h * gate(_wide(gamma, h), self.rank, self.gates.beta).to(h.dtype))


@contextmanager
def gated_weights(model: nn.Module, decompositions: Cuts, gates: Gates) -> Iterator[None]:
    """Inside, each layer with a gate runs through its decomposition."""
    new = {}
    for name, module in linear_layers(model, gates.costs).items():
        factors = decompositions[name].truncate(gates.costs[name].full).balanced()
        new[name] = GatedLinear.in_place_of(module, factors)
        new[name].gates, new[name].name = gates, name
    with replaced(model, new):
        yield


@contextmanager
def gated_activations(model: nn.Module, gates: Gates) -> Iterator[None]:
    """Inside, the activations A = x Wᵀ (t, m) of each layer with a gate pass it, at the layer's
    share of the min(t, m, n) singular values that A can have; the bias is added afterwards.
    """

    def pass_gate(name: str, module: nn.Linear, args: tuple, out: Tensor) -> Tensor:
        bias = 0 if module.bias is None else module.bias
        A = (out - bias).reshape(-1, module.out_features)
        position = gates.share(name) * min(len(A), *module.weight.shape)
        return truncate_smoothly(A, position, gates.beta).reshape(out.shape) + bias

    with ExitStack() as hooks:
        for name, module in linear_layers(model, gates.costs).items():
            hooks.callback(module.register_forward_hook(partial(pass_gate, name)).remove)
        yield


def truncate_smoothly(A: Tensor, gamma: Tensor, beta: float) -> Tensor:
    """F (t, m) = U diag(σ_i T_i(γ)) Vᵀ for A (t, m), differentiable once in A and in γ.

    gamma: a scalar, from 0 to min(t, m).  One thin SVD, in float32 at least; F comes back in the
    dtype of A.
    """
    wide = A if A.dtype == torch.float64 else A.float()
    return GatedProduct.apply(wide, gate(_wide(gamma, A), min(A.shape), beta)).to(A.dtype)


class GatedProduct(torch.autograd.Function):
    """F = U diag(σ T) Vᵀ of A (t, m) and a descending gate T (k,), k = min(t, m)."""

    @staticmethod
    def forward(ctx, A: Tensor, T: Tensor):
        with torch.autocast(A.device.type, enabled=False):  # in the precision of A
            U, sigma, Vh = torch.linalg.svd(A, full_matrices=False)
            ctx.save_for_backward(U, sigma, Vh, T)
            return (U * (sigma * T)) @ Vh

    @staticmethod
    @once_differentiable
    def backward(ctx, G: Tensor):
        U, sigma, Vh, T = ctx.saved_tensors
        UG, GV = U.T @ G, G @ Vh.T  # (k, m), (t, k)
        P = UG @ Vh.T  # (k, k)
        symmetric, skew = divided_differences(sigma, T)
        inside = symmetric * (P + P.T) / 2 + skew * (P - P.T) / 2
        # What G has outside the span of U, or of V, turns singular vectors: it passes with T.
        along_A = (U @ inside + (GV - U @ P) * T) @ Vh + (U * T) @ (UG - P @ Vh)
        return along_A, P.diagonal() * sigma


def divided_differences(sigma: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Ω⁺ and Ω⁻ (k, k) for d = σ T: (d_i − d_j) / (σ_i − σ_j), and (d_i + d_j) / (σ_i + σ_j).

    With σ_i ≥ σ_j, Ω⁺ = T_i + (T_i − T_j) σ_j / (σ_i − σ_j).  LIMIT bounds the last quotient.
    Ties on one side of the gate, where T_i = T_j, need no case.  Ω⁻ is a mean of T_i and T_j.
    """
    # σ and T both descend, so the larger of a pair is the first of it in either.
    larger, smaller = torch.maximum(sigma[:, None], sigma), torch.minimum(sigma[:, None], sigma)
    first, second = torch.maximum(T[:, None], T), torch.minimum(T[:, None], T)
    gap = torch.maximum(larger - smaller, smaller / LIMIT)
    quotient = torch.where(gap > 0, smaller / gap, 0)
    total = larger + smaller
    mean = (first * larger + second * smaller) / torch.where(total > 0, total, 1)
    return first + (first - second) * quotient, torch.where(total > 0, mean, (first + second) / 2)


def _wide(gamma: Tensor, like: Tensor) -> Tensor:
    """γ beside `like`, in float32 at least: half precision has no fractions between large ranks."""
    return gamma.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


def _unpadded(task_loss: Callable) -> Callable:
    """The same loss; it refuses a batch with padding, which would count as activations."""

    def loss(model: nn.Module, batch) -> Tensor:
        mask = padding_mask(batch)
        if mask is not None and not bool(mask.all()):
            padded = "a batch has padding, which would count as activations"
            raise ValueError(f"{padded}: give batches of full rows")
        return task_loss(model, batch)

    return loss
