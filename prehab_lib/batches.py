"""What a batch is, in one place: a dict of keyword arguments to `forward`, or an (images, labels)
tuple.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn


def device_of(model: nn.Module) -> torch.device:
    return next(
        chain(model.parameters(), model.buffers())
    ).device  # a model in 8 bits may have no parameters


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode; afterwards every module has its own flag back, also one that differed
    from the model's.
    """
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


@contextmanager
def seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """Random numbers, such as dropout's, from `seed`; the caller's random state is as before
    afterwards.
    """
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def move(batch, device):
    """The batch on `device`, of the same kind."""
    if isinstance(batch, Mapping):
        return {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return tuple(value.to(device) for value in batch)
    raise ValueError(
        f"a batch is a dict of keyword arguments to forward, or an (images, labels) tuple, not {type(batch).__name__}"
    )


def forward(model: nn.Module, batch):
    """What the model says to a batch: `model(**batch)` or `model(images)`."""
    return model(**batch) if isinstance(batch, Mapping) else model(batch[0])


def loss_of(task_loss: Callable, model: nn.Module, batch) -> Tensor:
    """`task_loss(model, batch)`, a number, as a scalar tensor.  Raises ValueError where it returns
    anything else.
    """
    loss = task_loss(model, batch)
    if isinstance(loss, float | int):
        loss = torch.tensor(float(loss))
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    what = (
        f"a tensor of shape {tuple(loss.shape)}"
        if isinstance(loss, Tensor)
        else f"a {type(loss).__name__}"
    )
    raise ValueError(
        f"task_loss(model, batch) must return one number as a tensor: it returned {what}"
    )


def padding_mask(batch) -> Tensor | None:
    """(B, T), True where a token is real; None where nothing is padded.

    Raises ValueError for a mask of another kind, which could be read the wrong way round.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None:
        return None
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)} or values other than 0 and 1: give one of shape "
            "(batch, tokens), 1 for a real token and 0 for padding"
        )
    return mask.bool()


def endless(batches: Iterable) -> Iterator:
    """The batches again and again, so that the number of steps is the caller's to choose.

    Raises ValueError if there is no batch, or if a generator that cannot start over runs out.
    """
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError(
                "the batches ran out: pass a list or a DataLoader that can start over, with at least one batch"
            )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter takes part in autograd while inside: activations may have a gradient, and no
    `.grad` is left behind.
    """
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in free:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
