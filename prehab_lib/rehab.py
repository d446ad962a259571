"""Rehab: repair the factors after surgery by alternating LoRA, merged so that no rank grows."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from prehab_lib.batches import device_of, endless, loss_of, mode, move, seeded, training_possible
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_choice, check_positive, check_seed, check_whole
from prehab_lib.layers import refuse_adapters, refuse_packed
from prehab_lib.precision import check_precision, forward_precision, master_weights
from prehab_lib.prehab import History, check_finite
from prehab_lib.progress import progress
from prehab_lib.save.hub import optional

ORDERS = {"UV": (("U",), ("V",)), "VU": (("V",), ("U",)), "joint": (("U", "V"),)}


@dataclass(frozen=True)
class Lora:
    """alpha, dropout: of peft's adapters; alpha is 2 · rank by default.

    warmup: steps in which the learning rate of a phase rises linearly; decay: it falls linearly to
    0 after them.  accumulate: batches a step; the loss is the mean of theirs.  seed: of dropout
    and of new adapters.
    """

    alpha: float | None = None
    dropout: float = 0.0
    warmup: int = 0
    decay: bool = False
    accumulate: int = 1
    seed: int = 0

    def __post_init__(self):
        check_seed(self.seed)
        if self.alpha is not None:
            check_positive(alpha=self.alpha)
        if not isinstance(self.dropout, Real) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout!r}: give a number from 0 to below 1")
        check_whole(0, warmup=self.warmup)
        check_whole(1, accumulate=self.accumulate)

    def rate(self, step: int, steps: int) -> float:
        """Share of the learning rate at one of a phase's steps, counted from 0."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        return (steps - step) / max(steps - self.warmup, 1) if self.decay else 1.0


def rehab(
    model: nn.Module,
    task_loss: Callable[[nn.Module, object], Tensor],
    batches: Iterable,
    *,
    rank: int,
    steps: int,
    lr: float,
    order: str = "UV",
    lora: Lora = Lora(),
) -> History:
    """LoRA on one factor at a time, in place, all else frozen; `steps` steps of AdamW a phase.

    Source: Tables II and IV, rows †.  order: "UV" (all U, merge, all V, merge; SVD-LLM's scripts),
    "VU", or "joint" (both at once, one phase).  rank: of the adapters.  A factor of rank r is
    (m, r) before and after; layers that stayed dense are not touched.  Of a bfloat16 model factors
    and adapters are float32 masters under autocast, rounded at the end.

    Raises ValueError for a bad option, a model in float16, without low-rank layers or with
    quantised ones, or a loss that is no longer finite (its phase's adapters are then dropped).
    """
    check_choice("order", order, ORDERS)
    check_whole(1, rank=rank)
    check_whole(0, steps=steps)
    check_positive(lr=lr)
    modules = model.named_modules()
    low_rank = {name: module for name, module in modules if isinstance(module, LowRankLinear)}
    if not low_rank:
        raise ValueError("rehab needs a compressed model: run surgery.compress first")
    refuse_packed(low_rank, "rehab")
    refuse_adapters(dict(model.named_modules()))
    check_precision(model)
    autocast = forward_precision(model, None)
    stream = endless(batches)

    def backward(when: str) -> float:
        """The mean loss of a step's batches; its gradient is added to the adapters'."""
        total = 0.0
        for _ in range(lora.accumulate):
            batch = move(next(stream), device_of(model))
            with autocast():
                loss = loss_of(task_loss, model, batch, trained=True) / lora.accumulate
            check_finite(loss, when, f"lower lr = {lr}")
            loss.backward()
            total += float(loss.detach())
        return total

    history, started = History(), time.perf_counter()
    with training_possible(), seeded(model, lora.seed), _factors_free(model, low_rank):
        for sides in ORDERS[order]:
            targets = [f"{name}.{side}" for name in low_rank for side in sides]
            phase = "".join(sides)
            with _adapters(model, targets, rank, lora) as free:
                optimizer = torch.optim.AdamW(free, lr=lr, weight_decay=0.0)
                schedule = LambdaLR(optimizer, lambda step: lora.rate(step, steps))
                for step in progress(range(steps), f"rehab {phase}"):
                    optimizer.zero_grad(set_to_none=True)
                    loss = backward(f"rehab step {step} of phase {phase}")
                    optimizer.step()
                    schedule.step()
                    row = {"step": len(history.rows), "phase": phase, "task_loss": loss}
                    history.rows.append(row)
    history.seconds = time.perf_counter() - started
    return history


@contextmanager
def _factors_free(model: nn.Module, low_rank: Iterable[str]) -> Iterator[None]:
    """Factors are float32 masters inside; afterwards rounded, and flags as before."""
    factors = [f"{name}.{side}.weight" for name in low_rank for side in "UV"]
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with master_weights(model, factors, None):
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


@contextmanager
def _adapters(model: nn.Module, targets: list[str], rank: int, lora: Lora) -> Iterator[list]:
    """New adapters on `targets`, alone free, in train mode; merged at the end, or dropped."""
    optional("peft")
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    options = {"lora_alpha": lora.alpha or 2 * rank, "lora_dropout": lora.dropout, "bias": "none"}
    adapted = LoraModel(model, LoraConfig(r=rank, target_modules=targets, **options), "rehab")
    try:
        with mode(model, training=True, statistics=False):
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
    except BaseException:
        adapted.unload()
        raise
    adapted.merge_and_unload()
