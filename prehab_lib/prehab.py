"""Low-Rank Prehab: fine-tune with a rank surrogate of the whitened weights added to the task loss (Algorithm 1)."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prehab_lib.batches import device_of, endless, mode, move
from prehab_lib.checkpoint import Checkpoint
from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.layers import linear_layers
from prehab_lib.progress import progress
from prehab_lib.stats import LayerStats
from prehab_lib.surrogates import entropy_rank, surrogate_named


@dataclass
class History:
    """One row a step: step, task_loss, lam, surrogate and entropy_rank (mean over layers; None where not computed)."""

    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def column(self, name: str) -> list:
        return [row.get(name) for row in self.rows]


def constant(lam: float) -> Callable[[int], float]:
    """λ at every step: the paper's schedule."""
    return lambda step: lam


def geometric(start: float, lam: float, warmup: int) -> Callable[[int], float]:
    """λ from `start` to `lam` by a constant factor over `warmup` steps, then `lam`: the released BERT script (1e-4 to 10)."""
    return lambda step: lam if step >= warmup else start * (lam / start) ** (step / warmup)


def prehab(
    model: nn.Module,
    task_loss: Callable[[nn.Module, object], Tensor],
    batches: Iterable,
    stats: dict[str, LayerStats],
    *,
    surrogate: str,
    lam: float | Callable[[int], float],
    steps: int,
    lr: float,
    coordinates: str = "weight",
    train: str = "layers",
    weight_decay: float = 0.0,
    reduction: str = "mean",
    log_every: int = 1,
    floor: float = 1e-6,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int = 100,
) -> History:
    """Lower task loss + λ · R(W_ℓ L_ℓ) by AdamW, in place.   Source: Eq. (2), Algorithm 1.

    stats: L_ℓ is a root of each layer's input Gram, frozen.  surrogate: a key of `SURROGATES`.  lam: λ, or a schedule
    step -> λ; **λ = 0 is plain fine-tuning of the same parameters through the same code**, the control of every table.
    coordinates: "weight" trains W; "whitened" trains Δ in W = W₀ + Δ L⁻¹, as the release does, with eigenvalues of the Gram
    raised to `floor` times their mean: gradient steps in Δ are preconditioned by the inverse Gram, so the floor matters.
    L is there Q √λ; the release takes Cholesky's, in whose other basis AdamW takes other steps.
    train: "layers" trains the compressed weights alone, "all" every parameter.  reduction over layers: "mean" (release)
    or "sum" (Eq. 2); λ differs by the number of layers.  log_every: steps between rows with surrogate and entropy rank.
    checkpoint: a file to resume from after a kill; batches must then come in the same order again, so a shuffling
    DataLoader needs a generator of its own with a fixed seed.

    Cost per step and layer: one product W L (2 m n² operations) and one decomposition of the surrogate, in float64.
    Raises ValueError for an unknown name, a negative or NaN λ, too few batches, or a loss that is no longer finite.
    """
    regularise = surrogate_named(surrogate)
    schedule = _schedule(lam)
    _check_choices(coordinates=coordinates, train=train, reduction=reduction)
    check_whole(0, steps=steps)
    check_whole(1, log_every=log_every, checkpoint_every=checkpoint_every)
    check_positive(lr=lr, floor=floor)
    if not stats:
        raise ValueError("prehab needs the statistic 'gram' of its layers: pass stats=stats.collect(...)")
    layers = linear_layers(model, stats)
    if half := [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float16]:
        raise ValueError(
            f"{half[0]!r} is in float16, in which AdamW's steps overflow or vanish: train in bfloat16 or float32"
        )
    roots = {
        name: _root(stats[name], layer, floor if coordinates == "whitened" else 0.0) for name, layer in layers.items()
    }
    share = 1.0 / len(layers) if reduction == "mean" else 1.0

    def rank_term(of: Callable[[Tensor], Tensor]) -> Tensor:
        values = [of(layer.weight.to(roots[name]) @ roots[name]).to(device_of(model)) for name, layer in layers.items()]
        return share * torch.stack(values).sum()

    settings = dict(surrogate=surrogate, steps=steps, lr=lr, coordinates=coordinates, train=train)
    settings |= dict(reduction=reduction, weight_decay=weight_decay, floor=floor)
    settings |= dict(lam=[schedule(step) for step in range(steps)])
    saved = Checkpoint(checkpoint, settings, [*model.parameters(), *roots.values()])
    history, started = History(), time.perf_counter()
    with _training(model, layers, roots, coordinates, train) as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
        history.rows, history.seconds = saved.resume(parameters, optimizer)
        stream = endless(batches)
        for _ in history.rows:
            next(stream)
        saved.restore_random_state()
        for step in progress(range(len(history.rows), steps), "prehab"):
            batch = move(next(stream), device_of(model))
            lam_now, logged = schedule(step), step % log_every == 0 or step == steps - 1
            with parametrize.cached():
                loss = _finite(task_loss(model, batch), step, lr, lam_now)
                rank = rank_term(regularise) if lam_now else None
                objective = loss if rank is None else _finite(loss + lam_now * rank, step, lr, lam_now)
                optimizer.zero_grad(set_to_none=True)
                objective.backward()
                row = {"step": step, "task_loss": float(loss.detach()), "lam": lam_now}
                row |= {"surrogate": None, "entropy_rank": None}
                if logged:
                    with torch.no_grad():
                        row["surrogate"] = float((rank_term(regularise) if rank is None else rank).detach())
                        row["entropy_rank"] = float(rank_term(entropy_rank)) / (share * len(layers))
            optimizer.step()
            history.rows.append(row)
            if (step + 1) % checkpoint_every == 0 or step == steps - 1:
                saved.write(history.rows, history.seconds + time.perf_counter() - started)
    history.seconds += time.perf_counter() - started
    return history


def _finite(value: Tensor, step: int, lr: float, lam: float) -> Tensor:
    if not torch.isfinite(value):
        raise ValueError(f"the loss is {float(value.detach())} at prehab step {step}: lower lr = {lr} or λ = {lam}")
    return value


class _Whitened(nn.Module):
    """W = W₀ + Δ L⁻¹: at Δ = 0 the weight is W₀ to the last bit, also for an ill-conditioned L."""

    def __init__(self, W0: Tensor, L_inverse: Tensor):
        super().__init__()
        self.register_buffer("W0", W0.clone(), persistent=False)
        self.register_buffer("L_inverse", L_inverse.to(W0), persistent=False)

    def forward(self, delta: Tensor) -> Tensor:
        return self.W0 + delta @ self.L_inverse

    def right_inverse(self, W: Tensor) -> Tensor:
        return torch.zeros_like(W)


@contextmanager
def _training(model: nn.Module, layers: dict[str, nn.Linear], roots: dict[str, Tensor], coordinates: str, train: str):
    """Train mode with only the chosen parameters free; on the way out weights are folded back and flags restored."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with mode(model, training=True):
            yield _free(model, layers, roots, coordinates, train)
    finally:
        for layer in layers.values():
            if parametrize.is_parametrized(layer, "weight"):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
                bias = layer.bias
                del layer.bias
                layer.register_parameter("bias", bias)  # parameters keep their order: weight, bias
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


def _free(model: nn.Module, layers: dict, roots: dict, coordinates: str, train: str) -> list[Tensor]:
    """Free the chosen parameters, in the chosen coordinates, and return them."""
    model.requires_grad_(train == "all")
    for name, layer in layers.items():
        layer.weight.requires_grad_(True)
        if coordinates == "whitened":
            L_inverse = (roots[name] / roots[name].square().sum(0)).T  # L = Q √λ, so L⁻¹ = (L / λ)ᵀ
            parametrize.register_parametrization(layer, "weight", _Whitened(layer.weight.detach(), L_inverse))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _root(stats: LayerStats, layer: nn.Linear, floor: float) -> Tensor:
    """L (n, n) on the layer's device in float64 (float32 on MPS)."""
    L = stats.gram_root(floor)
    if not L.any():
        raise ValueError("the input Gram of a layer is zero: look at the calibration data")
    device = layer.weight.device
    return L.to(device, torch.float32 if device.type == "mps" else torch.float64)


def _schedule(lam: float | Callable[[int], float]) -> Callable[[int], float]:
    if callable(lam):
        return lambda step: _check_lam(lam(step))
    return constant(_check_lam(lam))


def _check_lam(lam: float) -> float:
    if isinstance(lam, bool) or not isinstance(lam, Real) or not math.isfinite(lam) or lam < 0:
        raise ValueError(f"lam = {lam!r}: the weight of the surrogate is a finite number, 0 (the control) or larger")
    return float(lam)


_CHOICES = {"coordinates": ("weight", "whitened"), "train": ("layers", "all"), "reduction": ("mean", "sum")}


def _check_choices(**given: str) -> None:
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} = {value!r} is not known: choose one of {', '.join(_CHOICES[name])}")
