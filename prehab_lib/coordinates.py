"""What prehab trains, and in which coordinates: the weight W itself, or Δ in W = W₀ + Δ L⁻¹."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prehab_lib.batches import mode


class Whitened(nn.Module):
    """W = W₀ + Δ L⁻¹: at Δ = 0 the weight is W₀ to the last bit, also for an ill-conditioned L."""

    def __init__(self, W0: Tensor, L_inverse: Tensor):
        super().__init__()
        self.register_buffer("W0", W0.clone(), persistent=False)
        self.register_buffer("L_inverse", L_inverse.to(W0), persistent=False)

    def forward(self, delta: Tensor) -> Tensor:
        with torch.autocast(
            delta.device.type, enabled=False
        ):  # a weight keeps the precision of its master
            return self.W0 + delta @ self.L_inverse

    def right_inverse(self, W: Tensor) -> Tensor:
        return torch.zeros_like(W)


def trained_names(model: nn.Module, layers: dict[str, nn.Linear], train: str) -> list[str]:
    """Names of the parameters that train="layers" or "all" frees."""
    return (
        [f"{name}.weight" for name in layers]
        if train == "layers"
        else [name for name, _ in model.named_parameters()]
    )


@contextmanager
def training(
    model: nn.Module,
    layers: dict[str, nn.Linear],
    roots: dict[str, Tensor],
    coordinates: str,
    train: str,
) -> Iterator[list[Tensor]]:
    """Train mode with only the chosen parameters free; on the way out weights are folded back and
    flags restored.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with mode(model, training=True):
            yield _free(model, layers, roots, coordinates, train)
    finally:
        for layer in layers.values():
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                bias = layer.bias
                del layer.bias
                layer.register_parameter("bias", bias)  # parameters keep their order: weight, bias
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


def _free(
    model: nn.Module, layers: dict, roots: dict, coordinates: str, train: str
) -> list[Tensor]:
    """Free the chosen parameters, in the chosen coordinates, and return them."""
    model.requires_grad_(train == "all")
    for name, layer in layers.items():
        layer.weight.requires_grad_(True)
        if coordinates == "whitened":
            L_inverse = (roots[name] / roots[name].square().sum(0)).T  # L = Q √λ, so L⁻¹ = (L / λ)ᵀ
            parametrize.register_parametrization(
                layer, "weight", Whitened(layer.weight.detach(), L_inverse)
            )
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
