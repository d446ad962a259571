"""Try ranks out: low-rank layers in a model as long as a measurement takes."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from prehab_lib.batches import device_of, loss_of, mode, move
from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.rivals.ranks import Cuts, Ranks


@contextmanager
def replaced(model: nn.Module, new: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, `new` stands in the model; the very same modules come back, whatever happens."""
    before = {name: model.get_submodule(name) for name in new}
    try:
        for name, module in new.items():
            replace_module(model, name, module)
        yield
    finally:
        for name, module in before.items():
            replace_module(model, name, module)


@contextmanager
def truncated(model: nn.Module, decompositions: Cuts, ranks: Ranks) -> Iterator[None]:
    """Inside, each layer with a rank is the low-rank layer that surgery would put there, in the
    model's dtype.  Memory: r (m + n) numbers a layer.
    """
    chosen = {name: rank for name, rank in ranks.items() if rank}
    new = {}
    for name, module in linear_layers(model, chosen).items() if chosen else ():
        factors = decompositions[name].truncate(chosen[name]).balanced()
        new[name] = LowRankLinear.in_place_of(module, factors)
    with replaced(model, new):
        yield


@torch.no_grad()
def loss_at(
    model: nn.Module, decompositions: Cuts, ranks: Ranks, task_loss: Callable, batches: Iterable
) -> float:
    """Mean of `task_loss` over the batches with these ranks in place, in eval mode; inf as soon as
    one is not finite.  Raises ValueError where there is no batch.
    """
    losses = []
    with mode(model, training=False), truncated(model, decompositions, ranks):
        for batch in batches:
            loss = float(loss_of(task_loss, model, move(batch, device_of(model))))
            if not math.isfinite(loss):
                return math.inf
            losses.append(loss)
    if not losses:
        raise ValueError("there is nothing to measure a loss on: the batches are empty")
    return sum(losses) / len(losses)


def check_given(wanted_by: str, **given) -> None:
    """Raises ValueError naming the first argument that is None, or good for one pass alone."""
    for name, value in given.items():
        if value is None:
            raise ValueError(f"{wanted_by} needs {name}: pass {name}=...")
        if isinstance(value, Iterator):
            many = f"{wanted_by} goes over {name} many times"
            raise ValueError(f"{many}: pass a list or a DataLoader, not a generator")
