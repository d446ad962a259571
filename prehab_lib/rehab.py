"""Rehab: repair the factors after surgery by alternating LoRA, merged back so that no rank grows."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, endless, mode, move
from prehab_lib.best import Best
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.layers import refuse_packed
from prehab_lib.precision import check_compute, forward_precision, master_weights
from prehab_lib.prehab import History
from prehab_lib.progress import progress

ORDERS = {"UV": (("U",), ("V",)), "VU": (("V",), ("U",)), "joint": (("U", "V"),)}
SCRIPT = dict(
    rank=8, alpha=16, dropout=0.05, lr=1e-4, warmup=100, decay=True, accumulate=16
)  # of batches of 4 rows


def rehab(
    model: nn.Module,
    task_loss: Callable[[nn.Module, object], Tensor],
    batches: Iterable,
    *,
    rank: int,
    steps: int,
    lr: float,
    order: str = "UV",
    alpha: float | None = None,
    dropout: float = 0.0,
    weight_decay: float = 0.0,
    warmup: int = 0,
    decay: bool = False,
    accumulate: int = 1,
    validation: Iterable | None = None,
    validate_every: int = 100,
) -> History:
    """LoRA on one factor at a time with everything else frozen, `steps` steps of AdamW a phase, in
    place.

    order: "UV" (all U, merge, all V, merge; SVD-LLM's scripts), "VU", or "joint" (both at once, one
    phase). rank: of the adapters.  alpha: LoRA's scale, 2 · rank by default.  A factor of rank r is
    (m, r) before and after. warmup: steps in which the learning rate of a phase rises linearly.
    decay: let it fall linearly to 0 after them. accumulate: batches a step; the loss is the mean of
    theirs.
    validation: batches that can be read again.  Before, every `validate_every` steps and after a
    phase their mean loss is taken, in eval mode, and the adapters of the lowest are merged: a phase
    that only hurts changes nothing.

    Source: Tables II and IV, rows †; the adapters are peft's.  Layers that stayed dense are not
    touched.
    Of a bfloat16 model the factors are float32 masters meanwhile, and so are their adapters;
    products are bfloat16 (autocast), and both phases together are rounded once (`precision`).
    `SCRIPT` are the values of SVD-LLM's scripts for LLaMA-7B, with batches of 4 rows of at most 256
    tokens.

    Raises ValueError for an unknown order, a number that makes no sense, a model without low-rank
    layers or with quantised ones, validation batches that can be read only once, a float16 model,
    or a loss that is no longer finite (that phase's adapters are then dropped).
    """
    if order not in ORDERS:
        raise ValueError(f"order = {order!r} is not known: choose one of {', '.join(ORDERS)}")
    check_whole(1, rank=rank)
    check_whole(0, steps=steps)
    check_whole(0, warmup=warmup)
    check_whole(1, accumulate=accumulate, validate_every=validate_every)
    check_positive(lr=lr)
    if validation is not None and iter(validation) is validation:
        raise ValueError(
            "validation batches are read more than once: pass a list, or batches that can start over"
        )
    low_rank = [name for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    if not low_rank:
        raise ValueError(
            "rehab needs a compressed model: no low-rank layer was found, run surgery.compress first"
        )
    refuse_packed({name: model.get_submodule(name) for name in low_rank}, "rehab")
    check_compute(model, None)
    precise = forward_precision(model, None)
    factors = [f"{name}.{side}.weight" for name in low_rank for side in "UV"]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    stream = endless(batches)
    history, started = History(), time.perf_counter()
    settings = _Settings(
        steps, lr, weight_decay, warmup, decay, accumulate, validation, validate_every
    )
    try:
        with master_weights(model, factors, None):
            for sides in ORDERS[order]:
                targets = [f"{name}.{side}" for name in low_rank for side in sides]
                adapted = _adapt(model, targets, rank, alpha or 2 * rank, dropout)
                finished = False
                try:
                    with mode(model, training=True):
                        _train(
                            model,
                            _within(precise, task_loss),
                            stream,
                            settings,
                            "".join(sides),
                            history,
                        )
                    finished = True
                finally:
                    (adapted.merge_and_unload if finished else adapted.unload)()
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
    history.seconds = time.perf_counter() - started
    return history


def _adapt(model: nn.Module, targets: list[str], rank: int, alpha: float, dropout: float):
    """peft's wrapper around `model`, whose target layers now carry adapters; only the adapters are
    free.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=targets
    )
    return LoraModel(model, config, "rehab")


def _within(precise: Callable, task_loss: Callable) -> Callable:
    def loss(model: nn.Module, batch) -> Tensor:
        with precise():
            return task_loss(model, batch)

    return loss


@dataclass(frozen=True)
class _Settings:
    steps: int
    lr: float
    weight_decay: float
    warmup: int
    decay: bool
    accumulate: int
    validation: Iterable | None
    validate_every: int

    def rate(self, step: int) -> float:
        """Share of the learning rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return (self.steps - step) / max(self.steps - self.warmup, 1) if self.decay else 1.0

    def validates(self, step: int) -> bool:
        return self.validation is not None and (
            step % self.validate_every == 0 or step == self.steps
        )


def _train(model, task_loss, stream, settings: _Settings, phase: str, history: History) -> None:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate)
    best = Best(free)
    if settings.validates(0):
        best.offer(_mean_loss(model, task_loss, settings.validation))
    for step in progress(range(settings.steps), f"rehab {phase}"):
        row = {"step": len(history.rows), "phase": phase, "task_loss": 0.0}
        optimizer.zero_grad(set_to_none=True)
        for _ in range(settings.accumulate):
            loss = task_loss(model, move(next(stream), device_of(model))) / settings.accumulate
            if not torch.isfinite(loss):
                raise ValueError(
                    f"the loss is {float(loss.detach())} at rehab step {step} of phase {phase}: lower lr = {settings.lr}"
                )
            loss.backward()
            row["task_loss"] += float(loss.detach())
        optimizer.step()
        schedule.step()
        if settings.validates(step + 1):
            row["validation"] = _mean_loss(model, task_loss, settings.validation)
            best.offer(row["validation"])
        history.rows.append(row)
    best.restore()


@torch.no_grad()
def _mean_loss(model: nn.Module, task_loss: Callable, batches: Iterable) -> float:
    with mode(model, training=False):
        losses = [float(task_loss(model, move(batch, device_of(model)))) for batch in batches]
    if not losses:
        raise ValueError(
            "there are no validation batches: pass at least one, or leave validation out"
        )
    return sum(losses) / len(losses)
