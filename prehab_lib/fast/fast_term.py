"""Prehab's rank term by the fast surrogates: layers of one shape together, and a tangent that may
serve several steps.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.fast import Tangent, fast_named
from prehab_lib.rank_term import RankTerm
from prehab_lib.scale.sharding import is_sharded, whole

STACK = (
    16 * 2**20
)  # bytes of weights and metrics in one batch: beyond it a batch is no faster than its layers


class FastTerm(RankTerm):
    """R of all layers by a class of `fast.FAST`, renewed every `every` steps.

    Between two renewals R is its tangent there, c + ⟨D, W⟩ with the gradient D: no product at all.
    Then one D (m, n) of every layer stays in memory, where the roots are; with every=1 one stack of
    layers has its D at a time.
    """

    def __init__(self, name: str, every: int, rounds: int | None, *settings):
        kind = fast_named(name)
        self.kind, self.make, self.every = kind, partial(kind, rounds=rounds), every
        super().__init__(*settings)
        self.groups = _groups(self.layers, self.metrics())
        self.surrogates: dict[int, Callable[[Tensor], Tangent]] = {}
        self.held: dict[int, tuple[Tensor, Tensor]] = {}  # group -> c (b,), D (b, m, n)
        self.restored: dict[str, Tensor] = {}
        self.due, self.fell_back = True, 0

    def metrics(self) -> dict[str, Tensor]:
        return self.grams if self.kind.metric_is == "gram" else self.roots

    def check(
        self, model: nn.Module, coordinates: str, compute: str | None, checkpoint_every: int | None
    ) -> None:
        if checkpoint_every is not None and checkpoint_every % self.every:
            raise ValueError(
                f"checkpoint_every = {checkpoint_every} is no multiple of refresh = {self.every}: a run resumes where the "
                "tangents are made again, or it would be another run"
            )

    def refresh(self, model: nn.Module, step: int, rows: list[dict]) -> dict:
        self.due = (
            self.due or step % self.every == 0
        )  # of weights that this step's forward pass has yet to make
        return {}

    def noted(self) -> dict:
        return {"fell_back": self.fell_back}

    def state(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": value
            for i, made in self.surrogates.items()
            for name, value in made.state.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        self.restored = state

    def backward(self, loss: Tensor, lam: float, joint: bool) -> Tensor | None:
        self.fell_back = 0
        if not lam:
            loss.backward()
            return None
        if not joint:
            loss.backward()
        due, self.due = self.due, False
        values = []
        for i, names in enumerate(self.groups):
            weights = [self.layers[name].weight for name in names]
            tangents = self._renewed(i, weights) if due else self.held[i]
            if self.every > 1:
                self.held[i] = (
                    tangents[0],
                    tangents[1].to("cpu") if self.on == "cpu" else tangents[1],
                )
            take = _value if joint else partial(_pull, strength=lam * self.share)
            values += [take(weight, c, D) for weight, c, D in zip(weights, *tangents, strict=True)]
        value = self._sum(values)
        if joint:
            (loss + lam * value).backward()
        return value.detach()

    @torch.no_grad()
    def _renewed(self, i: int, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
        """c (b,) and D (b, m, n) of one group, at the weights as they are."""
        if i not in self.surrogates:
            metrics = [self.metrics()[name] for name in self.groups[i]]
            self.surrogates[i] = self.make(
                metrics[0][None] if len(metrics) == 1 else torch.stack(metrics)
            )
            mine = {
                name: value for name, value in self.restored.items() if name.startswith(f"{i}.")
            }
            self.surrogates[i].state |= {
                name.partition(".")[2]: value for name, value in mine.items()
            }
        W = torch.stack([whole(weight).to(self.dtype_of(weight)) for weight in weights])
        value, D, fell_back = self.surrogates[i](W)
        self.fell_back += int(fell_back.sum())
        return value - (D * W).sum((-2, -1)), D


def _value(weight: Tensor, c: Tensor, D: Tensor) -> Tensor:
    """c + ⟨D, W⟩, with the graph of W."""
    W = whole(weight)
    return c + (D.to(W) * W).sum()


def _pull(weight: Tensor, c: Tensor, D: Tensor, strength: float) -> Tensor:
    """c + ⟨D, W⟩ without a graph; its gradient times `strength` is added to the weight's."""
    if is_sharded(weight):
        value = _value(weight, c, D)
        (strength * value).backward()
        return value.detach()
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.add_(D.to(weight.grad), alpha=strength)
    return _value(weight.detach(), c, D)


def _groups(layers: dict[str, nn.Linear], metrics: dict[str, Tensor]) -> list[list[str]]:
    """Names of layers of one shape and device, as many together as `STACK` allows; at least one."""
    alike: dict[tuple, list[str]] = {}
    for name, layer in layers.items():
        alike.setdefault((layer.weight.shape, layer.weight.device), []).append(name)
    groups = []
    for names in alike.values():
        metric = metrics[names[0]]
        size = max(
            1, STACK // (metric.element_size() * (metric.numel() + layers[names[0]].weight.numel()))
        )
        groups += [names[i : i + size] for i in range(0, len(names), size)]
    return groups
