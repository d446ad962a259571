"""True per-sample gradients of each layer, streamed.

A sample's weight gradient is G_s = D_sᵀ X_s, with X_s (t, n) the inputs of its t tokens and D_s (t,
m) the gradients of its loss by the outputs.  Hooks catch both; none is kept beyond its batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.batches import IGNORED, loss_of, mode, requiring_grad
from prehab_lib.roots import exactly, on_factor_device
from prehab_lib.statistics import hooks

HALF_SCALE = 2.0**10  # times the loss in float16, whose small gradients would vanish

Receive = Callable[[str, Tensor, Tensor], None]  # (layer, X (B, t, n), D (B, t, m)) of one batch
ReceiveMean = Callable[[str, Tensor], None]  # (layer, Σ_s G_s (m, n)) of one batch


@dataclass
class GradientPass:
    """One pass over the batches with gradients; `run` hands X and D of every layer on.

    per_sample: D belongs to the loss of each sample alone.  Samples go one at a time; a batch goes
    at once where every layer reads it sample by sample, and the loss is declared
    `batches.mean_over_samples` and there is one label a sample, or `mean_over_tokens` and the rows
    are whole, none ignored.  False: the gradient of the batch's mean loss, as one sample.
    """

    model: nn.Module
    modules: dict[str, nn.Linear]
    batches: Iterable
    task_loss: Callable
    per_sample: bool = True

    def run(self, receive: Receive, receive_mean: ReceiveMean | None = None) -> int:
        """Number of samples.  Raises ValueError where a layer has no gradient in any batch."""
        hooks.refuse_parametrised(self.modules)
        samples, weights = 0, [module.weight for module in self.modules.values()]
        reached: set[str] = set()

        def arrive(layer: str, X: Tensor, D: Tensor) -> None:
            reached.add(layer)
            receive(layer, X, D)

        with mode(self.model, training=False), torch.enable_grad(), requiring_grad(weights, True):
            for batch in hooks.calibration(self.model, self.batches, "gradients"):
                size = _size(batch) if self.per_sample else 1
                at_once = not self.per_sample or _is_mean(self.task_loss, batch, size)
                if not (at_once and self._backward(batch, size, arrive, receive_mean)):
                    for i in range(size):
                        self._backward(_sample(batch, i, size), 1, arrive, receive_mean)
                samples += size
        what, remedy = "no gradient reaches", "does the loss depend on it?"
        hooks.check_reached(self.modules, reached, what, remedy)
        return samples

    def _backward(self, batch, count: int, receive: Receive, receive_mean) -> bool:
        """Both passes of `count` samples; False, and nothing received, where a layer mixes them."""
        half = any(module.weight.dtype == torch.float16 for module in self.modules.values())
        loss_scale = HALF_SCALE if half else 1.0
        calls = _Calls(count, count / loss_scale, receive)
        with hooks.hooked(self.modules, after=calls.listen, recorded=True):
            loss = loss_of(self.task_loss, self.model, batch)
        if calls.mixed:
            return False
        if not torch.isfinite(loss):
            remedy = "look at the data, and leave out samples without any label"
            raise ValueError(f"task_loss is {loss.item()}: {remedy}")
        if not loss.requires_grad:
            raise ValueError("task_loss does not depend on the weights: it has no gradient")
        with _weight_gradients(self.modules, receive_mean, count / loss_scale) as weights:
            torch.autograd.backward(loss * loss_scale, inputs=weights)
        for name in [*calls.arrived]:  # of layers that the loss felt by some of their calls
            calls.hand_on(name)
        return True


@contextmanager
def _weight_gradients(
    modules: dict[str, nn.Linear], receive_mean: ReceiveMean | None, scale: float
) -> Iterator[list[Tensor]]:
    """Hands each weight's gradient on as it arrives and frees it; `.grad` is restored after."""
    with ExitStack() as undo:
        for name, module in modules.items():
            undo.callback(setattr, module.weight, "grad", module.weight.grad)
            module.weight.grad = None

            def take(weight: Tensor, name: str = name) -> None:
                if receive_mean is not None:
                    receive_mean(name, on_factor_device(weight.grad) * scale)
                weight.grad = None

            undo.callback(module.weight.register_post_accumulate_grad_hook(take).remove)
        yield [module.weight for module in modules.values()]


class _Calls:
    """The inputs of each layer with the gradients of its outputs times `scale`, call by call."""

    def __init__(self, samples: int, scale: float, receive: Receive):
        self.samples, self.scale, self.receive = samples, scale, receive
        self.expected: Counter[str] = Counter()  # calls whose gradient is still to come
        self.mixed = False  # an input has not one entry a sample in front
        self.arrived: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def listen(self, name: str, x: Tensor, out: Tensor) -> None:
        self.mixed |= self.samples > 1 and (x.ndim < 2 or len(x) != self.samples)
        self.expected[name] += 1
        x = x.detach()
        out.register_hook(lambda D: self._arrive(name, x, D))

    def _arrive(self, name: str, x: Tensor, D: Tensor) -> None:
        hooks.check_finite("gradients", name, D)
        pair = self._by_sample(x), self._by_sample(D.detach()) * self.scale
        self.arrived.setdefault(name, []).append(pair)
        self.expected[name] -= 1
        if not self.expected[name]:  # now: kept to the end, all layers' would live together
            self.hand_on(name)

    @exactly()
    def hand_on(self, name: str) -> None:
        pairs = zip(*self.arrived.pop(name), strict=True)
        self.receive(name, *(torch.cat(parts, dim=1) for parts in pairs))

    def _by_sample(self, x: Tensor) -> Tensor:
        """(B, t, n) in float32 or better."""
        return (x if x.dtype == torch.float64 else x.float()).reshape(self.samples, -1, x.shape[-1])


def _labels(batch) -> Tensor | None:
    return batch.get("labels") if isinstance(batch, Mapping) else batch[1]


def _size(batch) -> int:
    """Number of samples: as many as labels, else what most tensors have in front."""
    labels = _labels(batch)
    if isinstance(labels, Tensor) and labels.ndim:
        return len(labels)
    values = batch.values() if isinstance(batch, Mapping) else batch
    lengths = Counter(len(value) for value in values if isinstance(value, Tensor) and value.ndim)
    return max(lengths, key=lengths.get, default=0)


def _sample(batch, i: int, size: int):
    def cut(value):
        by_sample = isinstance(value, Tensor) and value.ndim and len(value) == size
        return value[i : i + 1] if by_sample else value

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    return tuple(cut(value) for value in batch)


def _is_mean(task_loss: Callable, batch, size: int) -> bool:
    """Whether the loss is declared, and of this batch is, the plain mean of its samples' losses."""
    labels = _labels(batch)
    if isinstance(labels, Tensor) and bool((labels == IGNORED).any()):
        return False
    if getattr(task_loss, "mean_over_tokens", False) and isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        return mask is None or bool(mask.all())
    one_each = isinstance(labels, Tensor) and labels.shape == (size,)
    return one_each and getattr(task_loss, "mean_over_samples", False)
