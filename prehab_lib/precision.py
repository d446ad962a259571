"""In which numbers training computes, and where they lie.

bfloat16 has 8 bits of precision: a weight of 0.02 moves only by steps of 1e-4, and a step of 1e-5
is rounded away.  So weights are trained as float32 masters, whatever dtype the model came in, and
rounded once at the end.  Bytes a trained parameter: 4 master + 4 gradient + 8 AdamW = 16, and 2
more for the bfloat16 copy that a forward pass works with.

`fully_shard` leaves every parameter a `DTensor`.  Each process gathers one whole weight at a time
and keeps its own shard's part of the gradient.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_choice

# "fused" (CUDA) needs no temporary copy of all parameters.
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adamw_fused": partial(torch.optim.AdamW, fused=True)}


@dataclass(frozen=True)
class Memory:
    """Options of `prehab` for large models; the defaults suit small ones.

    compute: "bfloat16" multiplies in bfloat16 (autocast), "float32" does not; None follows the
    model.  optimizer: a key of `OPTIMIZERS`.  gradient_checkpointing: recompute activations.
    rank_dtype: "float64" or "float32", of W L; None is the surrogate's own (`fast`: float32).
    roots_on: "cpu" keeps roots or Grams there (n² numbers a distinct input), not on the device.
    """

    compute: str | None = None
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    rank_dtype: str | None = None
    roots_on: str = "device"

    def __post_init__(self):
        check_choice("compute", self.compute, ("float32", "bfloat16", None))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("rank_dtype", self.rank_dtype, ("float64", "float32", None))
        check_choice("roots_on", self.roots_on, ("device", "cpu"))


def check_precision(model: nn.Module) -> None:
    """Raises ValueError for a float16 model, or bfloat16 shards, which have no masters here."""
    half = "is in float16, in which AdamW's steps overflow or vanish: train in bfloat16 or float32"
    policy = "MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
    shard = f"is sharded in bfloat16: shard it in float32 and give fully_shard a {policy}"
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16:
            raise ValueError(f"{name!r} {half}")
        if parameter.dtype == torch.bfloat16 and is_sharded(parameter):
            raise ValueError(f"{name!r} {shard}")


@contextmanager
def master_weights(model: nn.Module, trained: Iterable[str], compute: str | None) -> Iterator[None]:
    """Inside, bfloat16 parameters named in `trained` (compute="float32": all) are float32.

    On the way out each is rounded to the dtype it came in: what was not trained loses no bit.
    """
    trained = set(trained)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    try:
        for name, parameter in model.named_parameters():
            if parameter.dtype == torch.bfloat16 and (name in trained or compute == "float32"):
                _change_dtype(parameter, torch.float32)
        yield
    finally:
        for name, parameter in model.named_parameters():
            if parameter.dtype != dtypes[name]:
                _change_dtype(parameter, dtypes[name])


def _change_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    parameter.grad = None  # a gradient has the dtype of its parameter
    parameter.data = parameter.data.to(dtype)


def forward_precision(model: nn.Module, compute: str | None):
    """A maker of the forward pass's context: autocast, or nothing; compute=None: as the model."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if compute == "bfloat16" or (compute is None and torch.bfloat16 in dtypes):
        device = next(model.parameters()).device.type
        return lambda: torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext


@contextmanager
def recomputed_activations(model: nn.Module, on: bool) -> Iterator[None]:
    """Inside, each block keeps its input alone and is computed again for the same gradient.

    About a third more operations.  A model that does so already is left as it is.  Raises
    ValueError for models not of transformers or timm.
    """
    flags = ("gradient_checkpointing", "grad_checkpointing")  # of transformers, of timm
    if not on or any(getattr(module, flag, False) for module in model.modules() for flag in flags):
        yield
        return
    config = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    _recompute(model, True)
    try:
        if use_cache:  # which would keep what is to be recomputed
            config.use_cache = False
        yield
    finally:
        _recompute(model, False)
        if use_cache:
            config.use_cache = use_cache


def _recompute(model: nn.Module, on: bool) -> None:
    # Not reentrant: that loses the gradient where a block's input needs none (a frozen embedding).
    options = {"use_reentrant": False}
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(on)
        return
    for kind in ("activation_checkpointing", "gradient_checkpointing"):  # since and before 5.2
        if hasattr(model, f"{kind}_enable"):
            given = {f"{kind}_kwargs": options} if on else {}
            getattr(model, f"{kind}_{'enable' if on else 'disable'}")(**given)
            return
    lacks = f"{type(model).__name__} offers no gradient checkpointing"
    raise ValueError(f"{lacks}: leave it out, or make the batches smaller")


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def whole(weight: Tensor) -> Tensor:
    """All of a weight that may be sharded; its gradient goes back to the shards."""
    return weight.full_tensor() if is_sharded(weight) else weight


def refuse_sharded(model: nn.Module, what: str, remedy: str) -> None:
    """Raises ValueError naming a sharded parameter where `what` needs whole ones."""
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ValueError(f"{what} needs whole weights, and {name!r} is sharded: {remedy}")
