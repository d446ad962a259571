"""True per-sample gradients of each layer, streamed.

A sample's weight gradient is G_s = D_sᵀ X_s, with X_s (t, n) the inputs of its t tokens and D_s (t,
m) the gradients of its loss with respect to the outputs.  Hooks catch both, a batch at a time, and
hand them on; no gradient is kept beyond its batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from prehab_lib.batches import IGNORED, device_of, loss_of, mode, move, requiring_grad
from prehab_lib.progress import progress
from prehab_lib.roots import on_factor_device

HALF_SCALE = 2.0**10  # times the loss in float16, whose small gradients would vanish

Receive = Callable[[str, Tensor, Tensor], None]  # (layer, X (B, t, n), D (B, t, m)) of one batch


class GradientPass:
    """One pass over the batches with gradients; `run` hands X and D of every layer on.

    per_sample: D belongs to the loss of each sample alone, whatever the batch.  Samples go one at a
    time; a whole batch goes at once where its loss is declared `batches.mean_over_samples` and it
    has one label a sample, or `mean_over_tokens` and its rows are whole, none ignored, and every
    layer reads it sample by sample.  per_sample=False: the gradient of the batch's mean loss, as
    one sample.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[str, nn.Linear],
        batches: Iterable,
        task_loss: Callable,
        per_sample: bool = True,
    ):
        if iter(batches) is batches:
            raise ValueError(
                "statistics of gradients may pass over the batches more than once: pass a list or "
                "a DataLoader"
            )
        self.model, self.modules, self.batches = model, modules, batches
        self.task_loss, self.per_sample = task_loss, per_sample

    def run(
        self, receive: Receive, receive_mean: Callable[[str, Tensor], None] | None = None
    ) -> int:
        """Number of samples.  receive_mean(layer, Σ_s G_s): the plain gradient (m, n)."""
        device, samples = device_of(self.model), 0
        weights = [module.weight for module in self.modules.values()]
        fixed = [weight for weight in weights if not weight.requires_grad]
        with mode(self.model, training=False), torch.enable_grad(), requiring_grad(fixed, True):
            for batch in progress(self.batches, "gradients"):
                samples += self._batch(move(batch, device), receive, receive_mean)
        if not samples:
            raise ValueError("there are no batches to take gradients of: pass at least one")
        return samples

    def _batch(self, batch, receive: Receive, receive_mean) -> int:
        if not self.per_sample:
            self._backward(batch, 1, receive, receive_mean)
            return 1
        size = _size(batch)
        by_samples = getattr(self.task_loss, "mean_over_samples", False)
        by_tokens = getattr(self.task_loss, "mean_over_tokens", False)
        at_once = (by_samples and _one_label_each(batch, size)) or (
            by_tokens and _whole_rows(batch)
        )
        if not (at_once and self._backward(batch, size, receive, receive_mean)):
            for i in range(size):
                self._backward(_sample(batch, i, size), 1, receive, receive_mean)
        return size

    def _backward(self, batch, count: int, receive: Receive, receive_mean) -> bool:
        """Forward and backward pass of `count` samples; False, with nothing received, where a layer
        mixes their rows.
        """
        taps = {name: _Tap(name, count, receive) for name in self.modules}
        with ExitStack() as hooks:
            for name, module in self.modules.items():
                hook = module.register_forward_hook(taps[name].listen, with_kwargs=True)
                hooks.callback(hook.remove)
            loss = loss_of(self.task_loss, self.model, batch)
        if not all(tap.by_sample for tap in taps.values()):
            return False
        if not torch.isfinite(loss):
            raise ValueError(
                f"task_loss is {float(loss)}: look at the data, and leave out samples without any "
                "label"
            )
        if not loss.requires_grad:
            raise ValueError("task_loss does not depend on the weights: it has no gradient")
        half = any(module.weight.dtype == torch.float16 for module in self.modules.values())
        scale = HALF_SCALE if half else 1.0
        for tap in taps.values():
            tap.scale = count / scale
        with _weight_gradients(self.modules, receive_mean, count / scale) as weights:
            torch.autograd.backward(loss * scale, inputs=weights)
        for tap in taps.values():
            tap.flush()
        return True


@contextmanager
def _weight_gradients(
    modules: dict[str, nn.Linear], receive_mean, scale: float
) -> Iterator[list[Tensor]]:
    """Hands each weight's gradient on as it arrives and frees it: one at a time, and `.grad` is as
    before afterwards.
    """
    before = {name: module.weight.grad for name, module in modules.items()}
    with ExitStack() as hooks:
        for name, module in modules.items():
            module.weight.grad = None

            def take(weight: Tensor, name: str = name) -> None:
                if receive_mean is not None:
                    receive_mean(name, on_factor_device(weight.grad) * scale)
                weight.grad = None

            hooks.callback(module.weight.register_post_accumulate_grad_hook(take).remove)
        try:
            yield [module.weight for module in modules.values()]
        finally:
            for name, module in modules.items():
                module.weight.grad = before[name]


class _Tap:
    """Pairs the inputs of one layer with the gradients of its outputs, all calls of it together."""

    def __init__(self, name: str, samples: int, receive: Receive):
        self.name, self.samples, self.receive = name, samples, receive
        self.scale = 1.0
        self.by_sample = True  # every input has one entry a sample in front
        self.inputs: list[Tensor] = []
        self.arrived: list[tuple[Tensor, Tensor]] = []

    def listen(self, module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        call, x = len(self.inputs), args[0] if args else kwargs["input"]
        if not out.requires_grad:
            raise ValueError(
                f"layer {self.name!r} runs without gradients: turn gradient checkpointing off for "
                "these statistics"
            )
        self.by_sample &= self.samples == 1 or (x.ndim > 1 and len(x) == self.samples)
        self.inputs.append(x.detach())
        out.register_hook(lambda D: self._arrive(call, D))

    def _arrive(self, call: int, D: Tensor) -> None:
        if not torch.isfinite(D).all():
            raise ValueError(
                f"NaN or infinite gradients reach layer {self.name!r}: look at the data, the loss "
                "and the precision"
            )
        X, D = self._per_sample(self.inputs[call]), self._per_sample(D.detach()) * self.scale
        self.arrived.append((X, D))
        if len(self.arrived) == len(self.inputs):
            self.flush()

    def _per_sample(self, x: Tensor) -> Tensor:
        """(B, t, n) in float32 or better."""
        return (x if x.dtype == torch.float64 else x.float()).reshape(self.samples, -1, x.shape[-1])

    def flush(self) -> None:
        if self.arrived:
            X, D = (torch.cat(parts, dim=1) for parts in zip(*self.arrived, strict=True))
            self.receive(self.name, X, D)
        self.inputs, self.arrived = [], []


# What the batch looks like


def _labels(batch) -> Tensor | None:
    return batch.get("labels") if isinstance(batch, Mapping) else batch[1]


def _size(batch) -> int:
    """Number of samples: as many as labels, else what most tensors have in front."""
    labels = _labels(batch)
    if isinstance(labels, Tensor) and labels.ndim:
        return len(labels)
    values = batch.values() if isinstance(batch, Mapping) else batch
    lengths = Counter(len(value) for value in values if isinstance(value, Tensor) and value.ndim)
    return lengths.most_common(1)[0][0] if lengths else 0


def _sample(batch, i: int, size: int):
    def cut(value):
        by_sample = isinstance(value, Tensor) and value.ndim and len(value) == size
        return value[i : i + 1] if by_sample else value

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    return tuple(cut(value) for value in batch)


def _whole_rows(batch) -> bool:
    """Every token of every row is real and scored."""
    if not isinstance(batch, Mapping):
        return False
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    all_real = mask is None or bool(mask.all())
    return all_real and (labels is None or not bool((labels == IGNORED).any()))


def _one_label_each(batch, size: int) -> bool:
    labels = _labels(batch)
    one_each = isinstance(labels, Tensor) and labels.shape == (size,)
    return one_each and not bool((labels == IGNORED).any())
