"""Weights that lie in pieces on several devices (FSDP2): gather one at a time, and let its gradient
go back to the pieces.

`torch.distributed.fsdp.fully_shard` leaves every parameter a `DTensor` outside the forward and
backward passes.  Each process gathers one whole weight, computes the surrogate on it, and keeps the
part of the gradient that belongs to its own shard: no communication but the gathering, and every
process sees the same value.
"""

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """True for a `DTensor`."""
    return hasattr(tensor, "full_tensor")


def sharded_name(model: nn.Module) -> str | None:
    """The first parameter that is a `DTensor`; None where the model is whole."""
    return next(
        (name for name, parameter in model.named_parameters() if is_sharded(parameter)), None
    )


def whole(weight: Tensor) -> Tensor:
    """The whole (m, n) of a weight that may be sharded, differentiable: the gradient goes back to
    the shards.
    """
    return weight.full_tensor() if is_sharded(weight) else weight


def refuse_sharded(model: nn.Module, what: str, remedy: str) -> None:
    """Raises ValueError naming a sharded parameter where `what` needs whole ones."""
    if name := sharded_name(model):
        raise ValueError(f"{what} needs whole weights, and {name!r} is sharded: {remedy}")
