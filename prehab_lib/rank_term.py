"""The second term of prehab's objective: a rank surrogate over the whitened weights of all layers,
and its gradient.
"""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from prehab_lib.roots import checked_gram, psd_root
from prehab_lib.scale.sharding import whole
from prehab_lib.stats import LayerStats


class RankTerm:
    """R, a function `of` each layer's W L (m, n), summed or averaged over the layers, and its
    gradient.
    """

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
        self.of, self.layers, self.stats = of, layers, stats
        self.floor, self.dtype, self.on = floor, getattr(torch, dtype), on
        self.share = 1.0 / len(layers) if reduction == "mean" else 1.0
        self.metrics()

    def metrics(self) -> dict[str, Tensor]:
        """layer -> what the term knows of its inputs, (n, n): part of what a checkpoint is bound
        to.
        """
        return self.roots

    @cached_property
    def roots(self) -> dict[str, Tensor]:
        """layer -> L (n, n), one tensor for all layers that share a Gram and a device."""
        return self._shared(self._root)

    @cached_property
    def grams(self) -> dict[str, Tensor]:
        """layer -> G = L Lᵀ (n, n), shared as the roots are."""
        return self._shared(self._gram)

    def dtype_of(self, tensor: Tensor) -> torch.dtype:
        """Of W L on that tensor's device: MPS has no float64."""
        return torch.float32 if tensor.device.type == "mps" else self.dtype

    def check(
        self, model: nn.Module, coordinates: str, compute: str | None, checkpoint_every: int | None
    ) -> None:
        """Raises ValueError for what this term cannot do; checkpoint_every is None where nothing is
        kept.
        """

    def refresh(self, model: nn.Module, step: int, rows: list[dict]) -> dict:
        """Called before each step: what has to be made anew, and what of it goes into the step's
        row.
        """
        return {}

    def noted(self) -> dict:
        """Called after each step's backward pass: what else goes into its row."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint has to keep beside the parameters for the same bits to follow."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""

    def names(self) -> list[str]:
        """The layers that the term weighs on."""
        return list(self.layers)

    def backward(self, loss: Tensor, lam: float, joint: bool) -> Tensor | None:
        """Gradients of loss + λ R into the parameters; returns R, or None for λ = 0.

        joint: one graph of everything, for weights that are functions of what is trained.  Else
        layer after layer, so that one W L and its decomposition live at a time; the sums are the
        same to the last bit.
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
        return float(self._sum([of(self.whitened(name)) for name in self.layers])) / (
            self.share * len(self.layers)
        )

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

    def _shared(self, make: Callable[[str, Tensor, torch.device], Tensor]) -> dict[str, Tensor]:
        shared: dict[tuple, Tensor] = {}
        found = {}
        for name, layer in self.layers.items():
            weight = layer.weight
            gram = self.stats[name].need("gram", "prehab")
            key = (id(gram), weight.device)
            if key not in shared:
                made = make(name, gram, weight.device)
                if not made.any():
                    raise ValueError(
                        "the input Gram of a layer is zero: look at the calibration data"
                    )
                to = torch.device("cpu") if self.on == "cpu" else weight.device
                shared[key] = made.to(to, self.dtype_of(weight))
            found[name] = shared[key]
        return found

    def _root(self, name: str, gram: Tensor, device: torch.device) -> Tensor:
        # Small roots are kept with the statistics for whoever comes next; large ones would double
        # them.
        keep = self.floor or (self.dtype == torch.float64 and self.on == "device")
        return self.stats[name].gram_root(self.floor) if keep else psd_root(gram.to(device))

    def _gram(self, name: str, gram: Tensor, device: torch.device) -> Tensor:
        if self.floor:
            L = self.stats[name].gram_root(self.floor)
            return L @ L.T
        return checked_gram(gram)
