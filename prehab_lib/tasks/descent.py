"""The training loop of the base models: one step of AdamW a batch, a schedule, clipped gradients;
and the weights of the best validation.
"""

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


class Best:
    """Keeps a copy of some parameters as they were at the lowest value offered so far.

    value: that value, infinite before the first.  since: offers in a row that were not lower.
    Memory: one copy.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self.value, self.since = float("inf"), 0
        self.kept: list[Tensor] | None = None

    def offer(self, value: float) -> bool:
        """Keep the parameters as they are if `value` is lower than every one before; whether it
        was.
        """
        if value < self.value:
            self.value, self.since = value, 0
            self.kept = [parameter.detach().clone() for parameter in self.parameters]
            return True
        self.since += 1
        return False

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back; nothing where none was ever kept."""
        for parameter, value in zip(self.parameters, self.kept or [], strict=False):
            parameter.copy_(value)
