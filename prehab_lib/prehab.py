"""Low-Rank Prehab (Algorithm 1): fine-tune with a rank surrogate of the whitened weights."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prehab_lib import precision
from prehab_lib.batches import device_of, endless, loss_of, mode, move, seeded, training_possible
from prehab_lib.inputs import check_choice, check_positive, check_seed, check_settings, check_whole
from prehab_lib.precision import Memory
from prehab_lib.progress import progress
from prehab_lib.rank_term import FLOOR, RankTerm, term_of
from prehab_lib.statistics.dose import MEASURED, Dose, lam_of
from prehab_lib.stats import LayerStats
from prehab_lib.surrogates import entropy_rank


@dataclass
class History:
    """A row a step: step, task_loss, lam, and where computed surrogate and (mean) entropy_rank.

    The first row has the dose ‖λ ∇R‖ / ‖∇L‖ of its batch and λ: a number to compare models by.
    `fast.Fast` adds "fell_back", the layers of this step for which the fast way did not suffice;
    `rivals.tail.Tail` at each refresh "tail": ranks, tails τ_ℓ, weights λ_ℓ / λ.
    """

    rows: list[dict] = field(default_factory=list)
    seconds: float = 0.0

    def column(self, name: str) -> list:
        return [row.get(name) for row in self.rows]


@dataclass(frozen=True)
class Training:
    """Options of `prehab` beside its objective.

    train: "layers" trains the compressed weights alone, "all" every parameter.  log_every: steps
    between rows with surrogate and entropy rank; None logs only the surrogate, where λ > 0.  seed:
    of dropout, so that arms that are compared drop alike.
    """

    train: str = "layers"
    weight_decay: float = 0.0
    log_every: int | None = 1
    seed: int = 0

    def __post_init__(self):
        check_choice("train", self.train, ("layers", "all"))
        check_seed(self.seed)
        if self.weight_decay:  # NaN too
            check_positive(weight_decay=self.weight_decay)
        if self.log_every is not None:
            check_whole(1, log_every=self.log_every)


def constant(lam: float) -> Callable[[int], float]:
    """λ at every step: the paper's schedule."""
    return lambda step: lam


def geometric(start: float, lam: float, warmup: int) -> Callable[[int], float]:
    """λ from `start` to `lam` by a constant factor over `warmup` steps: the release for BERT."""
    check_positive(start=start, lam=lam)
    check_whole(0, warmup=warmup)
    return lambda step: lam if step >= warmup else start * (lam / start) ** (step / warmup)


def prehab(
    model: nn.Module,
    task_loss: Callable[[nn.Module, object], Tensor],
    batches: Iterable,
    stats: dict[str, LayerStats],
    *,
    surrogate: str | object,
    lam: float | Callable[[int], float] | None = None,
    steps: int,
    lr: float,
    coordinates: str = "weight",
    reduction: str = "sum",
    training: Training = Training(),
    memory: Memory = Memory(),  # noqa: B008
    **dose: float,
) -> History:
    """Lower task loss + λ · R(W_ℓ L_ℓ) by AdamW, in place.   Source: Eq. (2), Algorithm 1.

    stats: L_ℓ is a root of each layer's input Gram, frozen.  surrogate: a key of `SURROGATES`, or
    an object with `.term(...)` (`rank_term.term_of`): `fast.Fast`, `rivals.tail.Tail`.  lam: λ, or
    a schedule step -> λ; **λ = 0 is plain fine-tuning of the same parameters through the same
    code**, the control of every table.  dose=, in its place: λ = dose · ‖∇L‖ / ‖∇R‖ (`lam_of`).
    reduction over layers: "sum" (Eq. 2) or "mean" (release).  coordinates: "weight" trains W;
    "whitened", as the release, Δ in W = W₀ + Δ L⁻¹, where AdamW takes other steps, and none where
    eigenvalues of the Gram are below `FLOOR` × their mean.  A bfloat16 model trains as float32
    masters under autocast, rounded at the end; one that `fully_shard` has sharded as it is.

    Raises ValueError for an unknown name, a negative or NaN λ, too few batches, a combination that
    cannot be, or a loss that is no longer finite.
    """
    check_settings("prehab", dose, ["dose"])
    if (lam is None) != bool(dose):
        raise ValueError("prehab takes the weight of R as lam or as dose: give one of the two")
    wanted = check_lam(dose.get("dose", 0.0), "dose")
    schedule = lam if callable(lam) else constant(check_lam(lam or 0.0))
    graph = training_possible()
    _check(model, stats, steps, lr, coordinates, reduction)
    term = term_of(surrogate, model, stats, coordinates, reduction, memory)
    autocast = precision.forward_precision(model, memory.compute)
    lams = [check_lam(schedule(step)) for step in range(steps)]  # now: before the weights move
    history, started = History(), time.perf_counter()
    dice = seeded(model, training.seed)

    def loss_on(batch) -> Tensor:
        with autocast():
            return loss_of(task_loss, model, move(batch, device_of(model)), trained=True)

    with graph, dice, _free(model, term, training, memory) as parameters:
        adamw = precision.OPTIMIZERS[memory.optimizer]
        optimizer = adamw(parameters, lr=lr, weight_decay=training.weight_decay)
        minibatches = endless(batches)
        if wanted and steps:
            first = [*islice(minibatches, min(MEASURED, steps))]
            minibatches = chain(first, minibatches)
            with seeded(model, training.seed), mode(model, training=True, statistics=False):
                lams = [lam_of(wanted, term, map(loss_on, first), parameters)] * steps
        for step in progress(range(steps), "prehab"):  # line 2 of Algorithm 1
            batch = next(minibatches)  # line 3
            lam_now = lams[step]
            if step or not wanted:  # else it was refreshed for the dose
                term.refresh(step)
            with _weights_made_once(term):
                loss = loss_on(batch)  # line 4
                remedy = f"lower lr = {lr} or λ = {lam_now}"
                check_finite(loss, f"prehab step {step}", remedy)
                optimizer.zero_grad(set_to_none=True)
                pulls = Dose([] if step else parameters)
                rank = term.backward(loss, lam_now, pulls)  # line 5, and the gradient of line 6
                row = {"step": step, "task_loss": float(loss.detach()), "lam": lam_now}
                row |= _logged(term, rank, training, step, steps) | term.notes
                row |= {} if step else {"dose": pulls.value()}
            if rank is not None:
                check_finite(loss.detach() + lam_now * rank, f"prehab step {step}", remedy)
            optimizer.step()  # line 6
            history.rows.append(row)
        if steps:  # no loss has seen the last step
            own = (getattr(weight, "to_local", weight.detach)() for weight in parameters)
            if not all(bool(torch.isfinite(weight).all()) for weight in own):
                raise ValueError(f"weights are not finite after the last step: {remedy}")
    history.seconds = time.perf_counter() - started
    return history


def _logged(term: RankTerm, rank: Tensor | None, training: Training, step: int, steps: int) -> dict:
    """Surrogate and entropy rank of one row; rank: R, where λ > 0 asked for it."""
    if training.log_every is None:
        return {"surrogate": None if rank is None else float(rank), "entropy_rank": None}
    if step % training.log_every and step < steps - 1:
        return {"surrogate": None, "entropy_rank": None}
    value = term.value() if rank is None else rank
    return {"surrogate": float(value), "entropy_rank": term.mean(entropy_rank)}


class Whitened(nn.Module):
    """W = W₀ + Δ L⁻¹: at Δ = 0 the weight is W₀ to the last bit, also for an ill-conditioned L.

    L⁻¹ is 0 where an eigenvalue is at `FLOOR`: what the data do not show stays as it is.
    """

    def __init__(self, W0: Tensor, L: Tensor):
        super().__init__()
        eigenvalues = L.square().sum(0)  # L = Q √λ, so L⁻¹ = (L / λ)ᵀ
        shown = eigenvalues > 1.001 * FLOOR * eigenvalues.mean()
        L_inverse = (L * torch.where(shown, 1 / eigenvalues, 0)).T
        self.register_buffer("W0", W0.clone(), persistent=False)
        self.register_buffer("L_inverse", L_inverse.to(W0), persistent=False)

    def forward(self, delta: Tensor) -> Tensor:
        with torch.autocast(delta.device.type, enabled=False):  # in its master's precision
            return self.W0 + delta @ self.L_inverse

    def right_inverse(self, W: Tensor) -> Tensor:
        return torch.zeros_like(W)


@contextmanager
def _free(model: nn.Module, term: RankTerm, training: Training, memory: Memory) -> Iterator[list]:
    """The parameters to train, alone free, in train mode and as masters; all is undone after it."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trained = set(flags)
    if training.train == "layers":
        trained = {f"{name}.weight" for name in term.layers}
    with (
        precision.master_weights(model, trained, memory.compute),
        precision.recomputed_activations(model, memory.gradient_checkpointing),
        mode(model, training=True, statistics=training.train == "all"),
    ):
        try:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained)
            if term.joint:
                for name, layer in term.layers.items():
                    whitened = Whitened(layer.weight.detach(), term.roots[name])
                    parametrize.register_parametrization(layer, "weight", whitened)
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        finally:
            _fold_back(term.layers.values())
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
                parameter.grad = None


@contextmanager
def _weights_made_once(term: RankTerm) -> Iterator[None]:
    """W₀ + Δ L⁻¹ is made once a step, where there is one."""
    with parametrize.cached():
        for layer in term.layers.values():
            _ = layer.weight  # now: a block that is recomputed would find it made the second time
        yield


def _fold_back(layers: Iterable[nn.Linear]) -> None:
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            bias = layer.bias
            del layer.bias
            layer.register_parameter("bias", bias)  # parameters keep their order: weight, bias


def _check(model: nn.Module, stats, steps: int, lr: float, coordinates: str, reduction: str):
    check_choice("coordinates", coordinates, ("weight", "whitened"))
    check_choice("reduction", reduction, ("sum", "mean"))
    check_whole(0, steps=steps)
    check_positive(lr=lr)
    if not stats:
        raise ValueError("prehab needs the statistic 'gram': pass stats=stats.collect(...)")
    precision.check_precision(model)
    if coordinates == "whitened":
        precision.refuse_sharded(model, "coordinates='whitened'", "use coordinates='weight'")


def check_lam(lam: float, name: str = "lam") -> float:
    """λ, or a dose, as a float; raises ValueError where it is no finite number of at least 0."""
    lam = lam.item() if isinstance(lam, Tensor) and lam.ndim == 0 else lam
    if isinstance(lam, bool) or not isinstance(lam, Real) or not math.isfinite(lam) or lam < 0:
        raise ValueError(f"{name} = {lam!r}: give a finite number, 0 (the control) or larger")
    return float(lam)


def check_finite(loss: Tensor, when: str, remedy: str) -> None:
    """Raises ValueError for a loss that is NaN or infinite."""
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {float(loss.detach())} at {when}: {remedy}")
