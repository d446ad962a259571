"""A batch, a dict for `forward` or an (images, labels) tuple, and what a model says to it."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

IGNORED = -100  # the label that cross-entropy leaves out


def device_of(model: nn.Module) -> torch.device:
    """Where the model lies: where its first tensor with numbers does, the CPU where it has none."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors if not tensor.is_meta), torch.device("cpu"))


def refuse_meta(model: nn.Module) -> None:
    """Raises ValueError for a weight without numbers, as `device_map` leaves those on disk."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            remedy = "load the model without device_map"
            raise ValueError(f"{name!r} has no numbers, it is on the device meta: {remedy}")


@contextmanager
def mode(model: nn.Module, training: bool, statistics: bool = True) -> Iterator[None]:
    """Train or eval mode inside; afterwards every module has its own flag back.

    statistics: False leaves what normalises by running statistics (BatchNorm) in eval mode.
    """
    before = {module: module.training for module in model.modules()}
    model.train(training)
    for module in before:
        if not statistics and getattr(module, "running_mean", None) is not None:
            module.training = False
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers, such as dropout's, from `seed` inside; the caller's random state stays."""
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def training_possible():
    """Autograd is on inside.  Raises ValueError in inference mode, whose tensors never train, and
    under autocast, which keeps one cast of a weight for as long as it lasts."""
    if torch.is_inference_mode_enabled():
        raise ValueError("nothing can train in torch.inference_mode(): call this outside of it")
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda", "mps"))):
        raise ValueError("nothing would train under torch.autocast: call this outside of it")
    return torch.enable_grad()


@contextmanager
def requiring_grad(parameters: Iterable[nn.Parameter], flag: bool) -> Iterator[None]:
    """All parameters have `requires_grad` = `flag` inside, and their own again afterwards."""
    changed = [parameter for parameter in parameters if parameter.requires_grad != flag]
    for parameter in changed:
        parameter.requires_grad_(flag)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not flag)


def frozen(model: nn.Module):
    """No parameter takes part in autograd inside: activations may have a gradient, weights none."""
    return requiring_grad(model.parameters(), False)


def move(batch, device):
    """The batch on `device`, of the same kind.  Raises ValueError for what is no batch."""
    if isinstance(batch, Mapping):
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    if isinstance(batch, tuple | list) and len(batch) == 2:
        try:
            pair = [value if hasattr(value, "to") else torch.as_tensor(value) for value in batch]
        except (TypeError, ValueError, RuntimeError) as problem:
            raise ValueError(f"a batch (images, labels) holds two tensors: {problem}") from problem
        return tuple(value.to(device) for value in pair)
    kinds = "a dict of keyword arguments to forward, or an (images, labels) tuple"
    raise ValueError(f"a batch is {kinds}, not {type(batch).__name__}")


def forward(model: nn.Module, batch):
    """What the model says to a batch: `model(**batch)`, with `positions`, or `model(images)`."""
    if not isinstance(batch, Mapping):
        return model(batch[0])
    return model(**dict(batch) | positions(model, batch))


def positions(model: nn.Module, batch: Mapping) -> dict[str, Tensor]:
    """{"position_ids": (B, T)} from the first real token on, for rows that are padded on the left.

    Empty where nothing is, where the batch has its own, or where forward takes none.
    """
    mask = batch.get("attention_mask")
    known = inspect.signature(model.forward).parameters
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool((mask[:, 0] != 0).all()):
        return {}
    if "position_ids" not in known or batch.get("position_ids") is not None:
        return {}
    # RoBERTa's kind counts on from the number of its padding token.
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    first = 0 if not padding or padding[0] is None else padding[0] + 1
    return {"position_ids": (mask.long().cumsum(-1) - 1).clamp_min(0) + first}


def loss_of(task_loss: Callable, model: nn.Module, batch, trained: bool = False) -> Tensor:
    """`task_loss(model, batch)` as a scalar tensor.  Raises ValueError where it is no number, or
    where it is `trained` on and has no gradient."""
    loss = task_loss(model, batch)
    if isinstance(loss, float | int):
        loss = torch.tensor(float(loss))
    if isinstance(loss, Tensor) and loss.numel() == 1:
        if trained and not loss.requires_grad:
            raise ValueError("task_loss does not depend on the weights: it has no gradient")
        return loss.reshape(())
    is_tensor = isinstance(loss, Tensor)
    kind = f"tensor of shape {tuple(loss.shape)}" if is_tensor else type(loss).__name__
    expected = "task_loss(model, batch) must return one number as a tensor"
    raise ValueError(f"{expected}: it returned a {kind}")


def mean_over_samples(task_loss: Callable) -> Callable:
    """A decorator: task_loss(model, batch) is the plain mean of its samples' losses.

    Per-sample gradients of a batch then take one pass.  Without it samples go one at a time, which
    is right for every loss: class weights or ignored labels weigh samples unequally.
    """
    task_loss.mean_over_samples = True
    return task_loss


def mean_over_tokens(task_loss: Callable) -> Callable:
    """A decorator, as `mean_over_samples`, for the mean over the scored tokens of a batch.

    Batches with rows that are padded, or have tokens left out, still go one row at a time.
    """
    task_loss.mean_over_tokens = True
    return task_loss


def endless(batches: Iterable) -> Iterator:
    """The batches again and again, so that the number of steps is the caller's to choose.

    Raises ValueError if there is no batch, or if a generator that cannot start over runs out.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            remedy = "pass a list or a DataLoader that can start over, with at least one batch"
            raise ValueError(f"the batches ran out: {remedy}")
