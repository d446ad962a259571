"""Low-Rank Prehab: fine-tune with a rank surrogate of the whitened weights added to the task loss
(Algorithm 1).
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from numbers import Real
from os import PathLike

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prehab_lib.batches import device_of, endless, move, seeded
from prehab_lib.coordinates import trained_names, training
from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.layers import linear_layers
from prehab_lib.precision import (
    check_compute,
    forward_precision,
    master_weights,
    recomputed_activations,
)
from prehab_lib.progress import progress
from prehab_lib.rivals.tail import Tail
from prehab_lib.scale.checkpoint import Checkpoint
from prehab_lib.scale.optimizers import optimizer_named
from prehab_lib.scale.sharding import refuse_sharded
from prehab_lib.stats import LayerStats
from prehab_lib.surrogates import entropy_rank
from prehab_lib.terms import ARITHMETIC, term_of


@dataclass
class History:
    """One row a step: step, task_loss, lam, surrogate and entropy_rank (mean over layers; None
    where not computed).

    With a `Tail`, rows of steps that refreshed it also have "tail": ranks, tails τ_ℓ, weights λ_ℓ /
    λ and what ascent needs. With arithmetic="fast" rows also have "fell_back": layers of this step
    for which the fast way did not suffice.
    """

    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def column(self, name: str) -> list:
        return [row.get(name) for row in self.rows]


def constant(lam: float) -> Callable[[int], float]:
    """λ at every step: the paper's schedule."""
    return lambda step: lam


def geometric(start: float, lam: float, warmup: int) -> Callable[[int], float]:
    """λ from `start` to `lam` by a constant factor over `warmup` steps, then `lam`: the released
    BERT script (1e-4 to 10).
    """
    return lambda step: lam if step >= warmup else start * (lam / start) ** (step / warmup)


def prehab(
    model: nn.Module,
    task_loss: Callable[[nn.Module, object], Tensor],
    batches: Iterable,
    stats: dict[str, LayerStats],
    *,
    surrogate: str | Tail,
    lam: float | Callable[[int], float],
    steps: int,
    lr: float,
    coordinates: str = "weight",
    train: str = "layers",
    weight_decay: float = 0.0,
    reduction: str = "mean",
    log_every: int | None = 1,
    floor: float = 1e-6,
    checkpoint: str | PathLike | None = None,
    checkpoint_every: int = 100,
    compute: str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    arithmetic: str = "exact",
    refresh: int = 1,
    rank_dtype: str | None = None,
    power_iterations: int | None = None,
    roots_on: str = "device",
    seed: int = 0,
) -> History:
    """Lower task loss + λ · R(W_ℓ L_ℓ) by AdamW, in place.   Source: Eq. (2), Algorithm 1.

    stats: L_ℓ is a root of each layer's input Gram, frozen.  surrogate: a key of `SURROGATES`, or a
    `tail.Tail`, which penalises what planned ranks will drop, with a λ_ℓ for each layer.  lam: λ,
    or a schedule step -> λ; **λ = 0 is plain fine-tuning of the same parameters through the same
    code**, the control of every table.
    coordinates: "weight" trains W; "whitened" trains Δ in W = W₀ + Δ L⁻¹, as the release does, with
    eigenvalues of the Gram raised to `floor` times their mean: gradient steps in Δ are
    preconditioned by the inverse Gram, so the floor matters. L is there Q √λ; the release takes
    Cholesky's, in whose other basis AdamW takes other steps.
    train: "layers" trains the compressed weights alone, "all" every parameter.  reduction over
    layers: "mean" (release) or "sum" (Eq. 2); λ differs by the number of layers.  log_every: steps
    between rows with surrogate and entropy rank; None logs no entropy rank and the surrogate where
    λ > 0 needs it anyway.
    checkpoint: a file to resume from after a kill; batches must then come in the same order again,
    so a shuffling DataLoader needs a generator of its own with a fixed seed.  seed: of dropout, so
    that arms that are compared drop alike.

    For large models.  compute: "bfloat16" multiplies in bfloat16 (autocast), "float32" does not;
    None follows the model. Weights that come in bfloat16 are trained as float32 masters and rounded
    once at the end: 16 bytes a parameter (`precision`).  optimizer: a key of `OPTIMIZERS`.
    gradient_checkpointing: recompute activations, the same result. arithmetic: "exact" decomposes
    every W L at every step, in float64; "fast" takes the forms of `fast`, in float32, whose errors
    it states: `refresh` steps share one tangent of R (the gradient of "nuclear_ratio" turns
    fastest: notebook 08), and "stable_rank" takes `power_iterations` (1) warm rounds, more where
    they do not do.
    rank_dtype: "float32" or "float64" otherwise.  roots_on="cpu" keeps roots or Grams (n² a
    distinct input) there and moves one at a time.
    A model sharded by `fully_shard` trains as it is, each process on its own batches of one size;
    all of them need the same stats.  Rows then hold each process's own task loss.

    Cost per step and layer: exact, one product W L (2 m n² operations), its gradient's and one
    decomposition, in rank_dtype; fast, see `fast`, over `refresh` steps.  In coordinates "weight"
    one layer's lives at a time; in "whitened" all of them do until the backward pass.  There W is
    made from Δ once a step, by one product with L⁻¹.
    Raises ValueError for an unknown name, a negative or NaN λ, too few batches, a combination that
    cannot be, or a loss that is no longer finite; ImportError for an optimizer whose package is
    missing.
    """
    term = term_of(surrogate, arithmetic, refresh, power_iterations)
    rank_dtype = rank_dtype or ARITHMETIC[arithmetic]
    schedule = _schedule(lam)
    _check_choices(
        coordinates=coordinates,
        train=train,
        reduction=reduction,
        rank_dtype=rank_dtype,
        roots_on=roots_on,
    )
    chosen = optimizer_named(optimizer)
    check_whole(0, steps=steps)
    check_whole(
        1, log_every=1 if log_every is None else log_every, checkpoint_every=checkpoint_every
    )
    check_positive(lr=lr, floor=floor)
    if not stats:
        raise ValueError(
            "prehab needs the statistic 'gram' of its layers: pass stats=stats.collect(...)"
        )
    layers = linear_layers(model, stats)
    check_compute(model, compute)
    if coordinates == "whitened":
        refuse_sharded(model, "coordinates='whitened'", "use coordinates='weight'")
    if checkpoint is not None:
        refuse_sharded(model, "checkpoint=...", "save shards with torch.distributed.checkpoint")
        if not chosen.resumable:
            raise ValueError(
                f"checkpoint=... cannot hold the state of optimizer {optimizer!r}: use 'adamw'"
            )
    rank = term(
        layers, stats, floor if coordinates == "whitened" else 0.0, rank_dtype, roots_on, reduction
    )
    rank.check(model, coordinates, compute, None if checkpoint is None else checkpoint_every)

    named = surrogate.described() if isinstance(surrogate, Tail) else surrogate
    settings = dict(surrogate=named, steps=steps, lr=lr, coordinates=coordinates, train=train)
    settings |= dict(
        reduction=reduction,
        weight_decay=weight_decay,
        floor=floor,
        lam=[schedule(i) for i in range(steps)],
    )
    settings |= dict(
        seed=seed,
        compute=compute,
        optimizer=optimizer,
        rank_dtype=rank_dtype,
        power_iterations=power_iterations,
    )
    if arithmetic != "exact":
        settings |= dict(arithmetic=arithmetic, refresh=refresh)
    saved = Checkpoint(checkpoint, settings, [*model.parameters(), *rank.metrics().values()])
    history, started = History(), time.perf_counter()
    precise = forward_precision(model, compute)
    with (
        seeded(model, seed),
        master_weights(model, trained_names(model, layers, train), compute),
        recomputed_activations(model, gradient_checkpointing),
        training(
            model, layers, rank.roots if coordinates == "whitened" else {}, coordinates, train
        ) as parameters,
    ):
        stepper = chosen.make(parameters, lr=lr, weight_decay=weight_decay)
        history.rows, history.seconds = saved.resume(parameters, stepper)
        stream = endless(batches)
        for _ in history.rows:
            next(stream)
        saved.restore_random_state()
        rank.restore(saved.beside)
        for step in progress(range(len(history.rows), steps), "prehab"):
            batch, lam_now = move(next(stream), device_of(model)), schedule(step)
            logged = log_every is not None and (step % log_every == 0 or step == steps - 1)
            planned = rank.refresh(model, step, history.rows)
            with parametrize.cached():
                with precise():
                    loss = _finite(task_loss(model, batch), step, lr, lam_now)
                stepper.zero_grad(set_to_none=True)
                value = rank.backward(loss, lam_now, joint=coordinates == "whitened")
                if value is not None:
                    _finite(loss.detach() + lam_now * value, step, lr, lam_now)
                row = {"step": step, "task_loss": float(loss.detach()), "lam": lam_now}
                row |= {"surrogate": None, "entropy_rank": None} | planned | rank.noted()
                if logged:
                    row["surrogate"] = float(rank.value() if value is None else value)
                    row["entropy_rank"] = rank.mean(entropy_rank)
                elif log_every is None and value is not None:
                    row["surrogate"] = float(value)
            stepper.step()
            history.rows.append(row)
            if (step + 1) % checkpoint_every == 0 or step == steps - 1:
                saved.write(
                    history.rows, history.seconds + time.perf_counter() - started, rank.state()
                )
    history.seconds += time.perf_counter() - started
    return history


def _finite(value: Tensor, step: int, lr: float, lam: float) -> Tensor:
    if not torch.isfinite(value):
        raise ValueError(
            f"the loss is {float(value.detach())} at prehab step {step}: lower lr = {lr} or λ = {lam}"
        )
    return value


def _schedule(lam: float | Callable[[int], float]) -> Callable[[int], float]:
    if callable(lam):
        return lambda step: _check_lam(lam(step))
    return constant(_check_lam(lam))


def _check_lam(lam: float) -> float:
    if isinstance(lam, bool) or not isinstance(lam, Real) or not math.isfinite(lam) or lam < 0:
        raise ValueError(
            f"lam = {lam!r}: the weight of the surrogate is a finite number, 0 (the control) or larger"
        )
    return float(lam)


_CHOICES = {
    "coordinates": ("weight", "whitened"),
    "train": ("layers", "all"),
    "reduction": ("mean", "sum"),
    "rank_dtype": ("float64", "float32"),
    "roots_on": ("device", "cpu"),
}


def _check_choices(**given: str) -> None:
    for name, value in given.items():
        if value not in _CHOICES[name]:
            raise ValueError(
                f"{name} = {value!r} is not known: choose one of {', '.join(_CHOICES[name])}"
            )
