"""The second term of prehab's objective: a rank surrogate over the whitened weights of all layers, and its gradient."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_whole
from prehab_lib.roots import psd_root
from prehab_lib.sharding import whole
from prehab_lib.stats import LayerStats
from prehab_lib.surrogates import stable_rank, surrogate_named


class RankTerm:
    """R, a function `of` each layer's W L (m, n), summed or averaged over the layers, and its gradient."""

    def __init__(
        self,
        of: Callable[[Tensor], Tensor],
        layers: dict[str, nn.Linear],
        stats: dict[str, LayerStats],
        floor: float,
        dtype: str,
        on: str,
        reduction: str,
    ):
        self.of, self.layers = of, layers
        self.share = 1.0 / len(layers) if reduction == "mean" else 1.0
        self.roots = _roots(layers, stats, floor, getattr(torch, dtype), on)

    def check(self, model: nn.Module, coordinates: str, compute: str | None, checkpoint_every: int | None) -> None:
        """Raises ValueError for what this term cannot do; checkpoint_every is None where nothing is kept."""

    def refresh(self, model: nn.Module, step: int, rows: list[dict]) -> dict:
        """Called before each step: what has to be made anew, and what of it goes into the step's row."""
        return {}

    def names(self) -> list[str]:
        """The layers that the term weighs on."""
        return list(self.layers)

    def backward(self, loss: Tensor, lam: float, joint: bool) -> Tensor | None:
        """Gradients of loss + λ R into the parameters; returns R, or None for λ = 0.

        joint: one graph of everything, for weights that are functions of what is trained.  Else layer after layer, so that
        one W L and its decomposition live at a time; the sums are the same to the last bit.
        """
        if not lam:
            loss.backward()
            return None
        if joint:
            value = self._sum([self._value(name) for name in self.names()])
            (loss + lam * value).backward()
            return value.detach()
        loss.backward()
        return self._sum([self._backward_of_one(name, lam) for name in self.names()])

    @torch.no_grad()
    def value(self) -> Tensor:
        return self._sum([self._value(name) for name in self.names()])

    @torch.no_grad()
    def mean(self, of: Callable[[Tensor], Tensor]) -> float:
        """Another function of W L, averaged over all layers."""
        return float(self._sum([of(self.whitened(name)) for name in self.layers])) / (self.share * len(self.layers))

    def whitened(self, name: str) -> Tensor:
        """A = W L (m, n)."""
        W = whole(self.layers[name].weight)
        L = self.roots[name].to(W.device)
        return W.to(L) @ L

    def _value(self, name: str) -> Tensor:
        return self.of(self.whitened(name))

    def _backward_of_one(self, name: str, lam: float) -> Tensor:
        value = self._value(name)
        (lam * (self.share * value)).backward()
        return value.detach()

    def _sum(self, values: list[Tensor]) -> Tensor:
        if not values:
            return torch.zeros(())
        return self.share * torch.stack([value.to(values[0].device) for value in values]).sum()


def _roots(layers: dict[str, nn.Linear], stats: dict, floor: float, dtype: torch.dtype, on: str) -> dict[str, Tensor]:
    """layer -> L (n, n), one tensor for all layers that share a Gram and a device (float32 on MPS)."""
    shared: dict[tuple, Tensor] = {}
    roots = {}
    for name, layer in layers.items():
        device = layer.weight.device
        gram = stats[name].need("gram", "prehab")
        key = (id(gram), device)
        if key not in shared:
            # Small roots are kept with the statistics for whoever comes next; large ones would double them.
            keep = floor or (dtype == torch.float64 and on == "device")
            L = stats[name].gram_root(floor) if keep else psd_root(gram.to(device))
            if not L.any():
                raise ValueError("the input Gram of a layer is zero: look at the calibration data")
            to = torch.device("cpu") if on == "cpu" else device
            shared[key] = L.to(to, torch.float32 if device.type == "mps" else dtype)
        roots[name] = shared[key]
    return roots


def surrogate_of(name: str, power_iterations: int | None) -> Callable[[Tensor], Tensor]:
    """The surrogate of that name, M (m, n) -> scalar; its σ₁ by power iteration where a number of them is given."""
    if name == "tail":
        raise ValueError(
            "surrogate 'tail' needs planned ranks: pass surrogate=prehab_lib.tail.Tail(ranks={layer: rank or None})"
        )
    of = surrogate_named(name)
    if power_iterations is None:
        return of
    check_whole(1, power_iterations=power_iterations)
    if name != "stable_rank":
        raise ValueError(
            f"power_iterations give the top singular value alone: surrogate {name!r} needs all, leave it out"
        )
    return partial(stable_rank, iterations=power_iterations)
