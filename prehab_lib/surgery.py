"""Surgery: swap the dense layers for low-rank ones, and say what was really removed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from prehab_lib.allocation import CHECKS, allocation_named
from prehab_lib.budget import check_removed
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.methods import RECOVERIES, RECOVERY_CHECKS, Method, method_named
from prehab_lib.progress import progress
from prehab_lib.save.storage import load, save
from prehab_lib.scale.lazy import last_look
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import Decomposition, decompose_lazily

__all__ = ["Report", "compress", "compress_at", "load", "save"]


@dataclass(frozen=True)
class Report:
    """What surgery did, recounted from the modules.

    removed, achieved: fraction of the weights of the compressed layers taken away, asked and true
    (biases do not count). ranks: layer -> rank, or None where it stayed dense.  parameters, bytes:
    of the whole model afterwards. kept_dense: layers for which no rank saves anything, or that the
    allocation spared.
    at_floor: layers at rank 1 that still cost more than their budget.
    """

    removed: float
    achieved: float
    ranks: dict[str, int | None]
    parameters: int
    bytes: int
    kept_dense: list[str] = field(default_factory=list)
    at_floor: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"removed {self.achieved:.1%} of {len(self.ranks)} layers' weights (asked {float(self.removed):.0%})"
        if self.kept_dense:
            text += f"; dense: {', '.join(self.kept_dense)}"
        if self.at_floor:
            text += f"; rank 1 exceeds the budget of: {', '.join(self.at_floor)}"
        return text


def compress(
    model: nn.Module,
    method: str | Method,
    removed: float,
    stats: Mapping[str, LayerStats] | None = None,
    *,
    layers: Iterable[str] | None = None,
    decompositions: Mapping[str, Decomposition] | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
    dtype: torch.dtype = torch.float64,
) -> Report:
    """Replace dense layers by low-rank ones, in place; where anything fails, the model is as it
    was.

    method: a key of `METHODS`, or a `Method`.  stats: from `stats.collect`.  layers: names, or None
    for those of `decompositions`, of `stats`, or the model's default.  decompositions: reuse one
    factorisation for many ratios (`weightings.decompose_all` on the *same* weights), or use
    `compress_at`; without them each layer's is made when it is needed, and with the uniform
    allocation one lives at a time.  task_loss, batches, validation: for the methods that need them.
    dtype: of the factorisation where it is made here; what float32 saves and costs,
    `weightings.decompose` says.

    Raises ValueError for an unknown method, a bad `removed`, a missing statistic or argument
    (naming it), a decomposition of other weights, or factors that are not finite (naming the
    layer).
    """
    given = dict(task_loss=task_loss, batches=batches, validation=validation)
    return next(_surgery(model, method, [removed], stats, layers, decompositions, given, dtype))


def compress_at(
    model: nn.Module,
    method: str | Method,
    removed: Iterable[float],
    stats: Mapping[str, LayerStats] | None = None,
    *,
    layers: Iterable[str] | None = None,
    decompositions: Mapping[str, Decomposition] | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Report]:
    """One model at several ratios, each layer factorised once: `for report in compress_at(...)`,
    the model is at that ratio.

    Everything else is as for `compress`, and so is each result, to the last bit.  A ratio starts
    from the dense layers again, whatever was done to the low-rank ones before it (rehab, say); what
    else was trained in between stays trained.  After the loop the model stays as the last ratio, or
    a `break`, left it; where a ratio fails, it is dense.

    All ranks are handed out first.  Memory beside the dense layers: the factors of the largest
    ranks in the model's dtype, from which each ratio is sliced, and a copy for the ratio at hand.
    """
    given = dict(task_loss=task_loss, batches=batches, validation=validation)
    return _surgery(model, method, [*removed], stats, layers, decompositions, given, dtype)


def _surgery(
    model: nn.Module,
    method: str | Method,
    removed: list[float],
    stats: Mapping[str, LayerStats] | None,
    layers: Iterable[str] | None,
    decompositions: Mapping[str, Decomposition] | None,
    given: dict,
    dtype: torch.dtype,
) -> Iterator[Report]:
    chosen = method_named(method)
    if not removed:
        raise ValueError("removed is empty: name at least one ratio")
    for fraction in removed:
        check_removed(fraction)
    check_arguments(chosen, given)
    names = next((list(some) for some in (layers, decompositions, stats) if some is not None), None)
    modules = linear_layers(model, names)
    if decompositions is None:
        check_stats(chosen, method if isinstance(method, str) else chosen.weighting, stats, modules)
        decompositions = decompose_lazily(model, stats, chosen.weighting, modules, dtype=dtype)
    else:
        _check_decompositions(decompositions, modules)
    allocate = partial(
        allocation_named(chosen.allocation), model=model, stats=stats, **given, **chosen.options
    )
    seen = {name: decompositions[name] for name in modules}
    return _each(
        model,
        modules,
        chosen,
        removed,
        [allocate(seen, fraction) for fraction in removed],
        seen,
        stats,
        given,
    )


def _each(
    model: nn.Module,
    modules: dict[str, nn.Linear],
    chosen: Method,
    removed: list[float],
    plans: list[dict[str, int | None]],
    decompositions: dict[str, Decomposition],
    stats: Mapping[str, LayerStats] | None,
    given: dict,
) -> Iterator[Report]:
    """Cut each layer at its largest rank, and the model at each plan."""
    before = {name: module.weight.numel() for name, module in modules.items()}
    longest = {}
    for name, module in progress(modules.items(), "surgery"):
        if rank := max(plan[name] or 0 for plan in plans):
            look = last_look if chosen.recovery is None else lambda found, rank: found
            longest[name] = low_rank(name, module, look(decompositions[name], rank), rank)
    for fraction, plan in zip(removed, plans, strict=True):
        take = first_components if len(plans) > 1 else lambda layer, rank: layer
        new = {name: take(longest[name], rank) for name, rank in plan.items() if rank}
        for name, dense in modules.items():
            replace_module(model, name, new.get(name, dense))
        try:
            if chosen.recovery is not None:
                cut = {name: decompositions[name] for name in new}
                more = dict(
                    stats=stats, weighting=chosen.weighting, **given, **chosen.recovery_options
                )
                RECOVERIES[chosen.recovery](model, decompositions=cut, **more)
        except BaseException:
            for name, dense in modules.items():
                replace_module(model, name, dense)
            raise
        yield recount(model, fraction, plan, before)


def check_arguments(method: Method, given: dict) -> None:
    """Raises ValueError naming an unknown allocation or recovery, or an argument it will ask for:
    before hours of work, not after.
    """
    allocation_named(method.allocation)
    steps = [(CHECKS.get(method.allocation), method.options)]
    if method.recovery is not None:
        if method.recovery not in RECOVERIES:
            raise ValueError(
                f"recovery = {method.recovery!r} is not known: choose one of {', '.join(RECOVERIES)}"
            )
        steps.append((RECOVERY_CHECKS.get(method.recovery), method.recovery_options))
    for check, options in steps:
        if check is not None:
            check(**given, **options)


def weights_of(module: nn.Module) -> int:
    """Numbers a linear layer stores for its weight, dense or low-rank, without the bias."""
    parts = (module.U, module.V) if isinstance(module, LowRankLinear) else (module,)
    return sum(part.weight.numel() for part in parts)


def low_rank(
    name: str, module: nn.Linear, decomposition: Decomposition, rank: int
) -> LowRankLinear:
    """The layer that takes `module`'s place.  Raises ValueError naming it where the factors are not
    finite.
    """
    try:
        return LowRankLinear.in_place_of(
            module, decomposition.truncate(rank).balanced(like=module.weight)
        )
    except ValueError as problem:
        raise ValueError(f"layer {name!r} at rank {rank}: {problem}") from problem


def first_components(layer: LowRankLinear, rank: int) -> LowRankLinear:
    """A layer of the first `rank` components of this one: of those that surgery left, the best of
    that rank.
    """
    new = LowRankLinear.from_factors(
        Factors(layer.U.weight[:, :rank], layer.V.weight[:rank]), layer.bias
    )
    for ours, theirs in zip(new.parameters(), layer.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return new.train(layer.training)


def recount(
    model: nn.Module, removed: float, ranks: dict[str, int | None], before: dict[str, int]
) -> Report:
    """What was done to the layers of `ranks`, whose weights held `before` numbers each."""
    after = {name: weights_of(model.get_submodule(name)) for name in ranks}
    budget = 1 - check_removed(removed)
    return Report(
        removed=removed,
        achieved=1 - sum(after.values()) / sum(before.values()),
        ranks=dict(ranks),
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        kept_dense=[name for name, rank in ranks.items() if rank is None],
        at_floor=[
            name
            for name, rank in ranks.items()
            if rank == 1 and after[name] > budget * before[name]
        ],
    )


def check_stats(
    method: Method, label: str, stats: dict[str, LayerStats] | None, names: Iterable[str]
) -> None:
    """Raises ValueError naming a statistic that the method needs and a layer lacks."""
    for name in names:
        for need in sorted(method.needs):
            wanted_by = f"method {label!r} for layer {name!r}"
            (stats or {}).get(name, LayerStats()).need(need, wanted_by)


def _check_decompositions(
    decompositions: dict[str, Decomposition], modules: dict[str, nn.Linear]
) -> None:
    for name, module in modules.items():
        if name not in decompositions:
            raise ValueError(f"decompositions lack layer {name!r}")
        found = decompositions[name]
        W = module.weight.detach().to(found.left)
        if (found.left.shape[0], found.right.shape[1]) != W.shape:
            raise ValueError(
                f"the decomposition of layer {name!r} has another shape than its weight {tuple(W.shape)}"
            )
        probe = torch.cos(
            torch.arange(W.shape[1], dtype=W.dtype, device=W.device)
        )  # one vector: W whole costs too much
        ours, theirs = W @ probe, found.left @ (found.right @ probe)
        tolerance = 1e-6 if found.left.dtype == torch.float64 else 1e-4
        if (ours - theirs).norm() > tolerance * W.norm():
            raise ValueError(
                f"the decomposition of layer {name!r} is of other weights: decompose again after training"
            )
