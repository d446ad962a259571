"""Surgery: swap the dense layers for low-rank ones, and say what was really removed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from prehab_lib.allocation import ALLOCATIONS, step_named
from prehab_lib.budget import check_removed
from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.methods import RECOVERIES, Method, method_named
from prehab_lib.progress import progress
from prehab_lib.save.storage import load, save
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import by_layer, decompose_all

__all__ = ["Report", "compress", "compress_at", "load", "save"]


@dataclass(frozen=True)
class Report:
    """What surgery did, recounted from the modules.

    removed, achieved: fraction of the compressed layers' weights taken away, asked and true (biases
    do not count).  ranks: None where a layer stayed dense.  parameters, bytes: of the whole model
    afterwards.  kept_dense: layers for which no rank saves anything, or that the allocation spared.
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
        layers, asked = len(self.ranks), float(self.removed)
        text = f"removed {self.achieved:.1%} of {layers} layers' weights (asked {asked:.0%})"
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
    """Replace dense layers by low-rank ones, in place; if anything fails, the model is as it was.

    method: a key of `METHODS`, or a `Method`.  stats: from `stats.collect`.  layers: names, or None
    for those of `decompositions`, of `stats`, or the model's default.  decompositions: of the
    *same* weights, from `weightings.decompose_all` to serve many ratios, or from
    `scale.lazy.decompose_lazily` for a large model.  task_loss, batches, validation: for the
    methods that need them.  dtype: of the factorisation where it is made here.

    Raises ValueError for an unknown method, a bad `removed`, a missing statistic or argument
    (naming it), a decomposition of other weights, or factors that are not finite (naming the
    layer).
    """
    data = dict(task_loss=task_loss, batches=batches, validation=validation)
    where = dict(layers=layers, decompositions=decompositions, dtype=dtype)
    return next(compress_at(model, method, [removed], stats, **where, **data))


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
    """One model at several ratios, each layer factorised once: `for report in compress_at(...)`.

    In the loop the model is at that ratio; arguments, results and errors are those of `compress`.
    Each starts from the dense layers again, whatever was done to the low-rank ones before it; what
    else was trained in between stays trained.  After the loop the model stays as the last ratio, or
    a `break`, left it; where a ratio fails, it is dense.  Memory beside the dense layers: the
    factors of the largest ranks, from which each ratio is sliced, and a copy for the one at hand.
    """
    ratios, chosen = [*removed], method_named(method)
    data = dict(task_loss=task_loss, batches=batches, validation=validation)
    if not ratios:
        raise ValueError("removed is empty: name at least one ratio")
    for ratio in ratios:
        check_removed(ratio)
    check_arguments(chosen, data)
    allocation = step_named("allocation", chosen.allocation, ALLOCATIONS)
    if layers is None:
        layers = stats if decompositions is None else decompositions
    modules = linear_layers(model, layers)
    if decompositions is not None:
        _check_decompositions(decompositions, modules)
    else:
        label = method if isinstance(method, str) else chosen.weighting
        check_stats(chosen, label, stats, modules)
        if allocation.shapes_only and chosen.recovery is None:  # then one can live at a time
            make = by_layer(stats, chosen.weighting, dtype=dtype)
            decompositions = {name: _Later(name, modules[name], make) for name in modules}
        else:
            decompositions = decompose_all(model, stats, chosen.weighting, modules, dtype=dtype)
    cuts = {name: decompositions[name] for name in modules}
    options = dict(model=model, stats=stats, **data, **chosen.options)
    plans = [allocation(cuts, ratio, **options) for ratio in ratios]
    return _cut_at_each(model, modules, chosen, ratios, plans, cuts, dict(stats=stats, **data))


class _Later:
    """The decomposition of one layer, made when it is truncated and forgotten afterwards."""

    def __init__(self, name: str, module: nn.Linear, make: Callable[..., Decomposition]):
        self.name, self.module, self.make = name, module, make
        self.shape = tuple(module.weight.shape)

    def truncate(self, rank: int) -> Factors:
        return self.make(self.name, self.module, most=rank).truncate(rank)


def _cut_at_each(
    model: nn.Module,
    modules: dict[str, nn.Linear],
    method: Method,
    ratios: list[float],
    plans: list[dict[str, int | None]],
    cuts: dict[str, Decomposition],
    data: dict,
) -> Iterator[Report]:
    """Cut each layer at its largest rank, and the model at each plan."""
    before = {name: module.weight.numel() for name, module in modules.items()}
    longest = {}
    for name, module in progress(modules.items(), "surgery"):
        rank = max(plan[name] or 0 for plan in plans)
        if rank:
            longest[name] = low_rank(name, module, cuts[name], rank)
    for ratio, plan in zip(ratios, plans, strict=True):
        new = {name: longest[name] for name, rank in plan.items() if rank}
        if len(plans) > 1:  # a ratio gets a copy: what is done to it must not reach the next
            new = {name: first_components(layer, plan[name]) for name, layer in new.items()}
        for name, dense in modules.items():
            replace_module(model, name, new.get(name, dense))
        try:
            if method.recovery is not None:
                options = dict(weighting=method.weighting, **data, **method.recovery_options)
                recover = step_named("recovery", method.recovery, RECOVERIES)
                recover(model, decompositions={name: cuts[name] for name in new}, **options)
        except BaseException:
            for name, dense in modules.items():
                replace_module(model, name, dense)
            raise
        yield recount(model, ratio, plan, before)


def check_arguments(method: Method, data: Mapping) -> None:
    """Raises ValueError for an unknown allocation or recovery, or an argument it will miss."""
    for axis, name, table, options in (
        ("allocation", method.allocation, ALLOCATIONS, method.options),
        ("recovery", method.recovery, RECOVERIES, method.recovery_options),
    ):
        check = None if name is None else step_named(axis, name, table).check
        if check is not None:
            check(**data, **options)


def weights_of(module: nn.Module) -> int:
    """Numbers a linear layer stores for its weight, dense or low-rank, without the bias."""
    parts = (module.U, module.V) if isinstance(module, LowRankLinear) else (module,)
    return sum(part.weight.numel() for part in parts)


def low_rank(name: str, module: nn.Linear, cut: Decomposition, rank: int) -> LowRankLinear:
    """The layer that takes `module`'s place.  Raises ValueError naming one that is not finite."""
    try:
        return LowRankLinear.in_place_of(module, cut.truncate(rank).balanced(like=module.weight))
    except ValueError as problem:
        if str(problem).startswith(f"layer {name!r}"):  # said where it was decomposed just now
            raise
        raise ValueError(f"layer {name!r} at rank {rank}: {problem}") from problem


def first_components(layer: LowRankLinear, rank: int) -> LowRankLinear:
    """A new layer of the first `rank` components of one that surgery left: the best there are."""
    factors = Factors(layer.U.weight[:, :rank], layer.V.weight[:rank])
    new = LowRankLinear.from_factors(factors, layer.bias)
    for ours, theirs in zip(new.parameters(), layer.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return new.train(layer.training)


def recount(
    model: nn.Module, removed: float, ranks: dict[str, int | None], before: dict[str, int]
) -> Report:
    """What was done to the layers of `ranks`, whose weights held `before` numbers each."""
    after = {name: weights_of(model.get_submodule(name)) for name in ranks}
    budget = 1 - check_removed(removed)
    parameters = [*model.parameters()]
    return Report(
        removed=removed,
        achieved=1 - sum(after.values()) / sum(before.values()),
        ranks=dict(ranks),
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        kept_dense=[name for name, rank in ranks.items() if rank is None],
        at_floor=[
            name
            for name, rank in ranks.items()
            if rank == 1 and after[name] > budget * before[name]
        ],
    )


def check_stats(
    method: Method, label: str, stats: Mapping[str, LayerStats] | None, names: Iterable[str]
) -> None:
    """Raises ValueError naming a statistic that the method needs and a layer lacks."""
    for name in names:
        statistics = (stats or {}).get(name) or LayerStats()
        for need in sorted(method.needs):
            statistics.need(need, f"method {label!r} for layer {name!r}")


def _check_decompositions(
    decompositions: Mapping[str, Decomposition], modules: dict[str, nn.Linear]
) -> None:
    for name, module in modules.items():
        if name not in decompositions:
            raise ValueError(f"decompositions lack layer {name!r}")
        shape = tuple(module.weight.shape)
        if tuple(decompositions[name].shape) != shape:
            raise ValueError(
                f"the decomposition of layer {name!r} has another shape than its weight {shape}"
            )
        if not decompositions[name].is_of(module.weight):
            raise ValueError(
                f"the decomposition of layer {name!r} is of other weights: decompose again after "
                "training"
            )
