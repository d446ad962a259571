"""The optimisers prehab can train with, and what their state costs; one line in `OPTIMIZERS` each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch


@dataclass(frozen=True)
class OptimizerChoice:
    """make(parameters, lr=..., weight_decay=...) -> optimiser; state_bytes: per trained parameter.

    resumable: its state is made of plain tensors, so that a checkpoint can hold it and shards can
    have their part of it.
    """

    make: Callable[..., torch.optim.Optimizer]
    state_bytes: float
    resumable: bool = True


def _from_library(package: str, name: str) -> Callable[..., torch.optim.Optimizer]:
    """The class `package`.optim.`name`, looked up when it is asked for: neither library is needed
    otherwise.
    """

    def make(parameters, **options) -> torch.optim.Optimizer:
        try:
            module = import_module(f"{package}.optim")
        except ImportError as problem:
            raise ImportError(
                f"this optimizer needs the package {package!r}: pip install {package}"
            ) from problem
        return getattr(module, name)(parameters, **options)

    return make


# Moments in 8 bits are scaled block by block (Dettmers et al., arXiv 2110.02861), a few percent
# above 2 bytes.  "paged" moves to the CPU's memory what does not fit on the GPU.  "fused" (CUDA)
# needs no temporary copy of all parameters.
OPTIMIZERS = {
    "adamw": OptimizerChoice(torch.optim.AdamW, 8),
    "adamw_fused": OptimizerChoice(partial(torch.optim.AdamW, fused=True), 8),
    "adamw_8bit": OptimizerChoice(_from_library("torchao", "AdamW8bit"), 2.1, resumable=False),
    "paged_adamw_8bit": OptimizerChoice(
        _from_library("bitsandbytes", "PagedAdamW8bit"), 2.1, resumable=False
    ),
}


def optimizer_named(name: str) -> OptimizerChoice:
    """The line behind a name.  Raises ValueError that lists the known names."""
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer = {name!r} is not known: choose one of {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]
