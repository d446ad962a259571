"""What the loss says about each layer: Fisher information from true per-sample gradients, streamed.

A sample's weight gradient is G_s = D_sᵀ X_s, with X_s (t, n) the inputs of its t tokens and D_s (t, m) the gradients of its
loss with respect to the outputs.  Hooks catch both, a batch at a time, so no gradient is kept beyond its batch: a layer
keeps the sums asked for (n, m, n², m² or m n numbers in float64), a batch its X and D and at most LIMIT numbers of G.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, mode, move, padding_mask
from prehab_lib.progress import progress
from prehab_lib.roots import on_factor_device

LIMIT = 2**25  # numbers of per-sample gradients held at once
IGNORED = -100  # the label that cross-entropy leaves out
HALF_SCALE = 2.0**10  # the loss is multiplied by this in float16, whose small gradients would vanish

Pass = Callable[[str, Tensor, Tensor], None]  # (layer, X (B, t, n), D (B, t, m)) of one batch


def column_squares(X: Tensor, D: Tensor) -> Tensor:
    """Σ_s Σ_i (G_s)_ij², (n,), for G_s = D_sᵀ X_s.  Swap X and D for the row sums, (m,)."""
    if X.shape[1] < min(X.shape[2], D.shape[2]):  # few tokens: Σ_i G_ij² = (Xᵀ (D Dᵀ) X)_jj needs no G
        return ((D @ D.mT @ X) * X).sum((0, 1)).clamp_min(0)
    return sum((D_.mT @ X_).square().sum((0, 1)) for X_, D_ in _chunks(X, D))


def sandwich(X: Tensor, D: Tensor, A: Tensor) -> Tensor:
    """Σ_s G_s A G_sᵀ, (m, m), for G_s = D_sᵀ X_s and A (n, n).  Swap X and D for Σ_s G_sᵀ B G_s, (n, n)."""
    A = A.to(X)
    if X.shape[1] < min(X.shape[2], D.shape[2]):
        return D.flatten(0, 1).T @ (X @ A @ X.mT @ D).flatten(0, 1)
    total = 0.0
    for X_, D_ in _chunks(X, D):
        G = D_.mT @ X_  # (b, m, n)
        total = total + (G @ A).transpose(0, 1).flatten(1) @ G.transpose(0, 1).flatten(1).T
    return total


def _chunks(X: Tensor, D: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, LIMIT // (X.shape[2] * D.shape[2]))
    return zip(X.split(size), D.split(size), strict=True)


class GradientPass:
    """One pass over the batches with gradients, in eval mode; `run(receive)` hands X and D of every layer to `receive`.

    per_sample: D belongs to the loss of each sample alone, whatever the batch.  A batch is taken whole where its loss is the
    mean of its samples' losses (compared on the first batch); one with padding or ignored labels, whose mean is over
    tokens, is taken sample by sample.  per_sample=False: the gradient of the batch's mean loss, as one sample.
    """

    def __init__(
        self, model: nn.Module, modules: dict[str, nn.Linear], batches: Iterable, task_loss: Callable, per_sample=True
    ):
        if iter(batches) is batches:
            raise ValueError(
                "statistics of gradients may pass over the batches more than once: pass a list or a DataLoader"
            )
        self.model, self.modules, self.batches = model, modules, batches
        self.task_loss, self.per_sample = task_loss, per_sample
        self.mean_of_samples: bool | None = None

    def run(self, receive: Pass, receive_mean: Callable[[str, Tensor], None] | None = None) -> int:
        """Number of samples.  receive_mean(layer, Σ_s G_s): the plain gradient (m, n), where it is wanted."""
        device, samples = device_of(self.model), 0
        with mode(self.model, training=False), torch.enable_grad(), _trainable(self.modules):
            for batch in progress(self.batches, "gradients"):
                for part, count in self._parts(move(batch, device)):
                    self._backward(part, count, receive, receive_mean)
                    samples += count
        if not samples:
            raise ValueError("there are no batches to take gradients of: pass at least one")
        return samples

    def _parts(self, batch) -> list[tuple[object, int]]:
        size = _size(batch)
        if not self.per_sample or size == 1:
            return [(batch, 1)]
        if self.mean_of_samples is None:
            self.mean_of_samples = self._is_mean(batch, size)
        if self.mean_of_samples and not _uneven(batch):
            return [(batch, size)]
        return [(_sample(batch, i, size), 1) for i in range(size)]

    @torch.no_grad()
    def _is_mean(self, batch, size: int) -> bool:
        whole = float(self.task_loss(self.model, batch))
        alone = [float(self.task_loss(self.model, _sample(batch, i, size))) for i in range(size)]
        return abs(whole - sum(alone) / size) <= 1e-3 * (abs(whole) + max(map(abs, alone)) / size)

    def _backward(self, batch, count: int, receive: Pass, receive_mean) -> None:
        taps = {name: _Tap(name, count, receive) for name in self.modules}
        weights = [module.weight for module in self.modules.values()]
        with ExitStack() as hooks:
            for name, module in self.modules.items():
                hooks.callback(module.register_forward_hook(taps[name].listen, with_kwargs=True).remove)
            loss = self.task_loss(self.model, batch)
        if not (isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1):
            raise ValueError("task_loss must return one number that depends on the weights: it has no gradient")
        scale = HALF_SCALE if weights[0].dtype == torch.float16 else 1.0
        for tap in taps.values():
            tap.scale = count / scale
        found = torch.autograd.grad(loss * scale, weights, allow_unused=True)
        for (name, tap), gradient in zip(taps.items(), found, strict=True):
            tap.flush()
            if receive_mean is not None and gradient is not None:
                receive_mean(name, on_factor_device(gradient) * tap.scale)


class _Tap:
    """Pairs the inputs of one layer with the gradients of its outputs; a layer called twice adds up over its calls."""

    def __init__(self, name: str, samples: int, receive: Pass):
        self.name, self.samples, self.receive = name, samples, receive
        self.scale = 1.0
        self.inputs: list[Tensor] = []
        self.arrived: list[tuple[Tensor, Tensor]] = []

    def listen(self, module: nn.Module, args: tuple, kwargs: dict, out: Tensor) -> None:
        call = len(self.inputs)
        self.inputs.append((args[0] if args else kwargs["input"]).detach())
        out.register_hook(lambda D: self._arrive(call, D))

    def _arrive(self, call: int, D: Tensor) -> None:
        X = self.inputs[call]
        if not torch.isfinite(D).all():
            raise ValueError(
                f"NaN or infinite gradients reach layer {self.name!r}: look at the data, the loss and the precision"
            )
        self.arrived.append((self._per_sample(X), self._per_sample(D) * self.scale))
        if len(self.arrived) == len(self.inputs):
            self.flush()

    def _per_sample(self, x: Tensor) -> Tensor:
        """(B, t, n) in float32 or better."""
        x = x.detach()
        if x.numel() % (self.samples * x.shape[-1]):
            raise ValueError(
                f"the rows that reach layer {self.name!r} do not divide into {self.samples} samples: use batches of one"
            )
        return (x if x.dtype == torch.float64 else x.float()).reshape(self.samples, -1, x.shape[-1])

    def flush(self) -> None:
        if self.arrived:
            X, D = (torch.cat(parts, dim=1) for parts in zip(*self.arrived, strict=True))
            self.receive(self.name, X, D)
        self.inputs, self.arrived = [], []


class _trainable:
    """Weights that take part in autograd while inside; what was frozen is frozen again afterwards."""

    def __init__(self, modules: dict[str, nn.Linear]):
        self.frozen = [module.weight for module in modules.values() if not module.weight.requires_grad]

    def __enter__(self):
        for weight in self.frozen:
            weight.requires_grad_(True)

    def __exit__(self, *_):
        for weight in self.frozen:
            weight.requires_grad_(False)


def _size(batch) -> int:
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 0)


def _sample(batch, i: int, size: int):
    def cut(value):
        return value[i : i + 1] if isinstance(value, Tensor) and value.ndim and len(value) == size else value

    if isinstance(batch, Mapping):
        return {name: cut(value) for name, value in batch.items()}
    return tuple(cut(value) for value in batch)


def _uneven(batch) -> bool:
    """True where samples may count unequally in a mean over tokens; one label a sample is a mean over samples."""
    mask = padding_mask(batch)
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if labels is not None and labels.ndim < 2:
        return False
    ignored = labels is not None and bool((labels == IGNORED).any())
    return ignored or (mask is not None and not bool(mask.all()))
