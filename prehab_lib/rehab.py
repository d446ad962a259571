"""Rehab: repair the factors after surgery by alternating LoRA, merged back so that no rank grows."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, endless, mode, move
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.prehab import History
from prehab_lib.progress import progress

ORDERS = {"UV": (("U",), ("V",)), "VU": (("V",), ("U",)), "joint": (("U", "V"),)}


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
) -> History:
    """LoRA on one factor at a time with everything else frozen, `steps` steps of AdamW a phase, in place.

    order: "UV" (all U, merge, all V, merge; SVD-LLM's scripts), "VU", or "joint" (both at once, one phase).
    rank: of the adapters.  alpha: LoRA's scale, 2 · rank by default.  A factor of rank r is (m, r) before and after.
    Source: Tables II and IV, rows †; the adapters are peft's.  Layers that stayed dense are not touched.

    Raises ValueError for an unknown order, a rank, lr or steps that makes no sense, a model without low-rank layers, or
    a loss that is no longer finite (the adapters of that phase are then dropped).
    """
    if order not in ORDERS:
        raise ValueError(f"order = {order!r} is not known: choose one of {', '.join(ORDERS)}")
    check_whole(1, rank=rank)
    check_whole(0, steps=steps)
    check_positive(lr=lr)
    low_rank = [name for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    if not low_rank:
        raise ValueError("rehab needs a compressed model: no low-rank layer was found, run surgery.compress first")
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    stream = endless(batches)
    history, started = History(), time.perf_counter()
    try:
        for sides in ORDERS[order]:
            targets = [f"{name}.{side}" for name in low_rank for side in sides]
            adapted = _adapt(model, targets, rank, alpha or 2 * rank, dropout)
            finished = False
            try:
                with mode(model, training=True):
                    _train(model, task_loss, stream, steps, lr, weight_decay, "".join(sides), history)
                finished = True
            finally:
                (adapted.merge_and_unload if finished else adapted.unload)()
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
    history.seconds = time.perf_counter() - started
    return history


def _adapt(model: nn.Module, targets: list[str], rank: int, alpha: float, dropout: float):
    """peft's wrapper around `model`, whose target layers now carry adapters; only the adapters are free."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=targets)
    return LoraModel(model, config, "rehab")


def _train(model, task_loss, stream, steps: int, lr: float, weight_decay: float, phase: str, history: History) -> None:
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=lr, weight_decay=weight_decay)
    for step in progress(range(steps), f"rehab {phase}"):
        loss = task_loss(model, move(next(stream), device_of(model)))
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {float(loss.detach())} at rehab step {step} of phase {phase}: lower lr = {lr}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        history.rows.append({"step": len(history.rows), "phase": phase, "task_loss": float(loss.detach())})
