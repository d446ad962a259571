"""In which numbers training computes: float32 master weights, products in bfloat16, activations
recomputed or kept.

A bfloat16 number has 8 bits of precision: a weight of 0.02 moves only by steps of 1e-4, and a step
of 1e-5 is rounded away. So weights are trained as float32 masters, whatever dtype the model came
in, and rounded once at the end.

Bytes a trained parameter: 4 master + 4 gradient + 8 AdamW = 16, and 2 more for the bfloat16 copy a
forward pass works with (7 billion: about 104 + 13 GiB); 10 + 2 with an optimiser of 8 bits.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from prehab_lib.scale.sharding import is_sharded

COMPUTE = ("float32", "bfloat16")


def check_compute(model: nn.Module, compute: str | None) -> None:
    """Raises ValueError for an unknown `compute`, a float16 model, or shards that cannot be held in
    float32 from here.
    """
    if compute is not None and compute not in COMPUTE:
        raise ValueError(
            f"compute = {compute!r} is not known: choose one of {', '.join(COMPUTE)}, or None"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float16:
            raise ValueError(
                f"{name!r} is in float16, in which AdamW's steps overflow or vanish: train in bfloat16 or float32"
            )
        if parameter.dtype == torch.bfloat16 and is_sharded(parameter):
            raise ValueError(
                f"{name!r} is sharded in bfloat16: shard the model in float32 and give fully_shard a "
                "MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
            )


@contextmanager
def master_weights(model: nn.Module, trained: Iterable[str], compute: str | None) -> Iterator[None]:
    """Inside, the bfloat16 parameters named in `trained` are float32 (all of them for
    compute="float32").

    On the way out each is rounded to the dtype it came in; what was not trained comes back to the
    last bit.
    """
    trained, before = (
        set(trained),
        {name: parameter.dtype for name, parameter in model.named_parameters()},
    )
    try:
        for name, parameter in model.named_parameters():
            if parameter.dtype == torch.bfloat16 and (name in trained or compute == "float32"):
                parameter.grad = None
                parameter.data = parameter.data.float()
        yield
    finally:
        for name, parameter in model.named_parameters():
            if parameter.dtype != before[name]:
                parameter.grad = None
                parameter.data = parameter.data.to(before[name])


def forward_precision(model: nn.Module, compute: str | None):
    """A function that makes the context for one forward pass: autocast to bfloat16, or nothing.

    compute: None follows the model: bfloat16 where it came in bfloat16.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if compute == "bfloat16" or (compute is None and torch.bfloat16 in dtypes):
        device = next(model.parameters()).device.type
        return lambda: torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext


@contextmanager
def recomputed_activations(model: nn.Module, on: bool) -> Iterator[None]:
    """Inside, each block keeps its input alone and is computed again for the gradient; afterwards
    every flag is back.

    Same gradients for about a third more operations.  For models of transformers and timm; raises
    ValueError for others.
    """
    if not on:
        yield
        return
    flagged = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    flags = [(module, module.gradient_checkpointing) for module in flagged]
    functions = [
        (module, module.__dict__.get("_gradient_checkpointing_func")) for module in flagged
    ]
    config = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    timm_flag = getattr(model, "grad_checkpointing", None)
    try:
        _enable(model)
        if use_cache:
            config.use_cache = False  # a cache would keep what is to be recomputed
        yield
    finally:
        for module, flag in flags:
            module.gradient_checkpointing = flag
        for module, function in functions:
            if function is None:
                module.__dict__.pop("_gradient_checkpointing_func", None)
            else:
                module._gradient_checkpointing_func = function
        if use_cache:
            config.use_cache = use_cache
        if timm_flag is not None:
            model.set_grad_checkpointing(timm_flag)


def _enable(model: nn.Module) -> None:
    # Not reentrant: the other kind loses the gradient where a block's input needs none, as behind a
    # frozen embedding.
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # transformers since 5.2x
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    elif hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    elif hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(True)
    else:
        raise ValueError(
            f"{type(model).__name__} offers no gradient checkpointing: leave gradient_checkpointing out, or make its batches smaller"
        )
