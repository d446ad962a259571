"""The second term of prehab's objective: a surrogate over the whitened weights of all layers."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_choice
from prehab_lib.layers import linear_layers
from prehab_lib.precision import Memory, whole
from prehab_lib.roots import exactly, psd_root
from prehab_lib.statistics.hooks import refuse_parametrised
from prehab_lib.stats import LayerStats
from prehab_lib.surrogates import SURROGATES

# Of the eigenvalues of a Gram, times their mean, in coordinates "whitened", where L is inverted.
FLOOR = 1e-6


class RankTerm:
    """R, a function `of` each layer's W L (m, n), summed or averaged over the layers.

    A surrogate of another kind derives from it: `fast.FastTerm`, `rivals.tail.TailTerm`.
    """

    usual_dtype = "float64"

    def __init__(
        self,
        of: Callable[[Tensor], Tensor],
        model: nn.Module,
        stats: dict[str, LayerStats],
        coordinates: str,
        reduction: str,
        memory: Memory,
    ):
        self.of, self.model, self.stats = of, model, stats
        self.layers = linear_layers(model, stats)
        refuse_parametrised(self.layers)
        self.names = list(self.layers)  # the layers that R weighs on
        # In whitened coordinates W is made from Δ: loss and R then share one graph.
        self.joint = coordinates == "whitened"
        self.floor = FLOOR if self.joint else 0.0
        self.dtype = getattr(torch, memory.rank_dtype or self.usual_dtype)
        self.memory = memory
        self.share = 1.0 / len(self.layers) if reduction == "mean" else 1.0
        self.notes: dict = {}  # what this step adds to its row of the history
        self.metrics = self.made_metrics()  # now: a Gram that is none stops before training

    def made_metrics(self) -> dict[str, Tensor]:
        """layer -> what the term knows of its inputs, (n, n): here L, the root of the Gram."""
        return self.roots

    @cached_property
    def roots(self) -> dict[str, Tensor]:
        """layer -> L (n, n)."""
        return self.once_per_gram(self._root)

    def once_per_gram(self, make: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """layer -> make(layer), one tensor for all layers that share a Gram and a device."""
        shared: dict[tuple, Tensor] = {}
        metrics = {}
        for name, layer in self.layers.items():
            device = layer.weight.device
            key = (id(self.stats[name].need("gram", "prehab")), device)
            if key not in shared:
                metric = make(name)
                if len(metric) != layer.in_features:
                    other = f"the statistics of {name!r} are of another width"
                    raise ValueError(f"{other}: collect anew")
                if not metric.any():
                    raise ValueError(f"the input Gram of {name!r} is zero: look at the batches")
                home = torch.device("cpu") if self.memory.roots_on == "cpu" else device
                shared[key] = metric.to(home, self.dtype_on(device))
            metrics[name] = shared[key]
        return metrics

    def dtype_on(self, device: torch.device) -> torch.dtype:
        return torch.float32 if device.type == "mps" else self.dtype  # MPS has no float64

    def refresh(self, step: int) -> None:
        """Called before each step: what has to be made anew."""

    def backward(self, loss: Tensor, lam: float, halfway=lambda: None) -> Tensor | None:
        """Gradients of loss + λ R into the parameters; returns R, or None for λ = 0.

        halfway: called where λ > 0, when the gradients are those of the loss alone.
        """
        if not lam:
            loss.backward()
            return None
        if self.joint:
            value = self.share * _total(self.values())
            loss.backward(retain_graph=True)  # W is in both graphs
            halfway()
            (lam * value).backward()
            return value.detach()
        loss.backward()
        halfway()
        pulled = []
        for value in self.values():
            (lam * (self.share * value)).backward()
            pulled.append(value.detach())
            del value  # and with it the graph of W L, before the next one is made
        return self.share * _total(pulled)

    def values(self) -> Iterator[Tensor]:
        """R of each layer, with its graph."""
        for name in self.names:
            yield self._value(name)

    @torch.no_grad()
    def value(self) -> Tensor:
        """R, without a graph; exact whatever `values` does."""
        return self.share * _total(self._value(name) for name in self.names)

    @torch.no_grad()
    def mean(self, of: Callable[[Tensor], Tensor]) -> float:
        """Another function of W L, averaged over all layers."""
        return float(_total(of(self.whitened(name)) for name in self.layers)) / len(self.layers)

    @exactly()
    def whitened(self, name: str) -> Tensor:
        """A = W L (m, n)."""
        W = whole(self.layers[name].weight)
        L = self.roots[name].to(W.device)
        return W.to(L) @ L

    def _value(self, name: str) -> Tensor:
        return self.of(self.whitened(name))

    def _root(self, name: str) -> Tensor:
        # Kept with the statistics for whoever comes next, unless they are so large that it hurts.
        if self.floor or (self.dtype == torch.float64 and self.memory.roots_on == "device"):
            return self.stats[name].gram_root(self.floor)
        return psd_root(self.stats[name].gram.to(self.layers[name].weight.device))


def term_of(surrogate, *settings) -> RankTerm:
    """The term of a name in `SURROGATES`, or of an object with `.term(*settings)`.

    settings: model, stats, coordinates, reduction, memory.  Raises ValueError for an unknown name.
    """
    if hasattr(surrogate, "term"):
        return surrogate.term(*settings)
    check_choice("surrogate", surrogate, SURROGATES)
    return RankTerm(SURROGATES[surrogate], *settings)


def _total(values: Iterable[Tensor]) -> Tensor:
    """Their sum, on the device of the first; 0 where there is none."""
    values = list(values) or [torch.zeros(())]
    return torch.stack([value.to(values[0].device) for value in values]).sum()
