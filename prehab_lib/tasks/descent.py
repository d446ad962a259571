"""The training loop of the base models: one step of AdamW a batch, a schedule, clipped gradients."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from prehab_lib.progress import progress


def descend(
    model: nn.Module,
    batches: Iterable,
    task_loss: Callable[[nn.Module, object], Tensor],
    *,
    lr: float,
    rate: Callable[[int], float],
    weight_decay: float,
    clip: float,
    what: str,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Iterator[float]:
    """The loss of each batch, before the step that it makes; every parameter is trained, in the
    mode the model is in.

    rate: number of the step -> factor of lr.  clip: largest norm of the gradient.  what: names the
    work in messages. Raises ValueError for a loss that is no longer finite.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, weight_decay=weight_decay, betas=betas, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step, batch in enumerate(progress(batches, what)):
        loss = task_loss(model, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at {what} step {step}: lower lr = {lr}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        yield value
    model.zero_grad(set_to_none=True)
