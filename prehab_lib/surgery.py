"""Surgery: swap the dense layers for low-rank ones, and say what was really removed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product

import torch
from torch import nn

from prehab_lib.allocation import ALLOCATIONS, Ranks, step_named
from prehab_lib.batches import refuse_meta
from prehab_lib.budget import check_removed
from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.inputs import check_choice, check_settings
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.methods import RECOVERIES, Method, method_named
from prehab_lib.progress import progress
from prehab_lib.rivals.shared import DATA, Cuts, check_decompositions
from prehab_lib.save.recount import Report, recount
from prehab_lib.save.storage import load, save
from prehab_lib.statistics.hooks import refuse_hooks
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import Stats, by_layer, decompose_all

__all__ = ["Report", "compress", "compress_at", "load", "save"]


def compress(
    model: nn.Module,
    method: str | Method,
    removed: float | None,
    stats: Stats = None,
    *,
    layers: Iterable[str] | None = None,
    decompositions: Cuts | None = None,
    task_loss: Callable | None = None,
    batches: Iterable | None = None,
    validation: Iterable | None = None,
    dtype: torch.dtype = torch.float64,
) -> Report:
    """Replace dense layers by low-rank ones, in place; if anything fails, the model is as it was.

    removed: None where the method has ranks of one's own.  layers: names, or None for those of
    `decompositions`, of `stats`, or the model's default.  decompositions: of the *same* weights,
    from `weightings.decompose_all`, or if large from `scale.lazy.decompose_lazily`: some methods
    need all at once.  task_loss, batches, validation: where asked for.  dtype: to factorise in.
    Raises ValueError for an unknown method, a bad `removed`, a missing statistic or argument, a
    decomposition of other weights, or factors that are not finite (naming the layer).
    """
    where = dict(layers=layers, decompositions=decompositions, dtype=dtype)
    data = dict(task_loss=task_loss, batches=batches, validation=validation)
    return next(compress_at(model, method, [removed], stats, **where, **data))


def compress_at(
    model: nn.Module,
    method: str | Method,
    removed: Iterable[float | None],
    stats: Stats = None,
    *,
    layers: Iterable[str] | None = None,
    decompositions: Cuts | None = None,
    dtype: torch.dtype = torch.float64,
    **data,
) -> Iterator[Report]:
    """One model at several ratios, each layer factorised once: `for report in compress_at(...)`.

    In the loop the model is at that ratio; arguments (data: task_loss, batches, validation) and
    errors are those of `compress`.  Each ratio starts from the dense layers again; what else was
    trained in between stays trained.  After the loop the model stays as the last ratio left it;
    where one fails, it is dense.  Memory: the factors of the largest ranks, and a ratio's copy.
    """
    check_settings("compress_at", data, DATA)
    check_choice("dtype", dtype, (torch.float64, torch.float32))
    data = dict.fromkeys(DATA) | data
    ratios, chosen = [*removed], method_named(method)
    if not ratios:
        raise ValueError("removed is empty: name at least one ratio")
    for ratio in [] if isinstance(chosen.allocation, Mapping) else ratios:
        check_removed(ratio)
    check_arguments(chosen, data)
    allocate, recover = step_named("allocation", chosen.allocation, ALLOCATIONS), None
    if chosen.recovery is not None:
        step = step_named("recovery", chosen.recovery, RECOVERIES)
        recover = partial(step, model, weighting=chosen.weighting, stats=stats, **data)
    if layers is None:
        layers = stats if decompositions is None else decompositions
    modules = linear_layers(model, layers)
    refuse_hooks(modules, "surgery")
    refuse_meta(model)
    if decompositions is not None:
        check_decompositions(decompositions, modules, chosen.weighting)
    else:
        label = method if isinstance(method, str) else chosen.weighting
        for name, need in product(modules, sorted(chosen.needs)):
            statistics = (stats or {}).get(name) or LayerStats()
            statistics.need(need, f"method {label!r} for layer {name!r}")
        if allocate.shapes_only and recover is None:  # then one can live at a time
            make = by_layer(stats, chosen.weighting, dtype=dtype)
            decompositions = {name: _Later(name, modules[name], make) for name in modules}
        else:
            decompositions = decompose_all(model, stats, chosen.weighting, modules, dtype=dtype)
    cuts = {name: decompositions[name] for name in modules}
    options = dict(model=model, stats=stats, **data, **chosen.options)
    plans = [(ratio, allocate(cuts, ratio, **options)) for ratio in ratios]
    return _cut_at_each(model, modules, cuts, plans, recover)


def check_arguments(method: Method, data: Mapping) -> None:
    """Raises ValueError for an unknown allocation or recovery, or an argument it will miss."""
    step_named("allocation", method.allocation, ALLOCATIONS).check_arguments(data, method.options)
    if method.recovery is not None:
        step_named("recovery", method.recovery, RECOVERIES).check_arguments(data, {})


class _Later:
    """The decomposition of one layer, made when it is truncated and forgotten afterwards."""

    def __init__(self, name: str, module: nn.Linear, make: Callable[..., Decomposition]):
        self.shape, self.make = tuple(module.weight.shape), partial(make, name, module)

    def truncate(self, rank: int) -> Factors:
        return self.make(most=rank).truncate(rank)


def _cut_at_each(
    model: nn.Module,
    modules: dict[str, nn.Linear],
    cuts: Cuts,
    plans: list[tuple[float | None, Ranks]],
    recover: Callable[..., None] | None,
) -> Iterator[Report]:
    """Cut each layer at its largest rank, and the model at each plan (removed, ranks)."""
    before = {name: module.weight.numel() for name, module in modules.items()}
    longest = {}
    for name, module in progress(modules.items(), "surgery"):
        rank = max(ranks[name] or 0 for _, ranks in plans)
        if rank:
            longest[name] = low_rank(name, module, cuts[name], rank)
    for removed, ranks in plans:
        new = {name: longest[name] for name, rank in ranks.items() if rank}
        if len(plans) > 1:  # a ratio gets a copy: what is done to it must not reach the next
            new = {name: first_components(layer, ranks[name]) for name, layer in new.items()}
        try:
            for name, layer in (modules | new).items():
                replace_module(model, name, layer)
            if recover is not None:
                recover(decompositions={name: cuts[name] for name in new})
        except BaseException:
            for name, dense in modules.items():
                replace_module(model, name, dense)
            raise
        yield recount(model, removed, ranks, before)


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
