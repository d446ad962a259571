"""Statistics and surgery one block at a time, for models that fill the memory alone.

`collect` gives what `stats.collect` gives; `compress` what `surgery.compress` gives with a uniform
allocation.  Beyond the model, the device holds one block, its statistics and one layer's
decomposition.  From a `skeleton.Streamed` folder not even the model: each block is read from
safetensors when its turn comes.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from prehab_lib.allocation import uniform
from prehab_lib.budget import check_removed, rank_for
from prehab_lib.inputs import warn_if_few_tokens
from prehab_lib.layers import replace_module
from prehab_lib.methods import Method, method_named
from prehab_lib.progress import progress
from prehab_lib.scale.memory import give_back
from prehab_lib.scale.skeleton import Streamed
from prehab_lib.scale.walk import NEEDS, Block, Walk
from prehab_lib.statistics.activations import version_of
from prehab_lib.stats import LayerStats
from prehab_lib.surgery import Report, first_components, low_rank, recount
from prehab_lib.weightings import decompose_lazily


def collect(
    source: nn.Module | Streamed,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    needs: Iterable[str] = ("gram",),
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> dict[str, LayerStats]:
    """As `stats.collect`, block by block: layer name -> `LayerStats`, on the CPU.

    source: a model, or a folder opened by `skeleton.open_streamed`.  needs: gram, mean_abs,
    max_abs, influence: what comes from activations alone.  device: where each block computes; None
    is where it lies.  The forward pass of every block runs once.

    Raises ValueError for other needs (naming one), layers outside the row of blocks, a host that
    does something between its blocks, no batch, or what `stats.collect` refuses.
    """
    needs = {needs} if isinstance(needs, str) else set(needs)
    other = sorted(needs - NEEDS)
    if other:
        raise ValueError(
            f"needs = {other[0]!r} takes gradients or is not known: stream.collect has "
            f"{', '.join(sorted(NEEDS))}; use stats.collect"
        )
    walk = Walk(source, layers, device, forget=True)
    walk.enter(batches)
    stats: dict[str, LayerStats] = {}
    for block in progress(walk, "statistics", total=len(walk.names)):
        stats |= _on_cpu(block.collect(needs, dtype))
    if "gram" in needs:
        seen = {name: (layer.tokens, len(layer.gram)) for name, layer in stats.items()}
        warn_if_few_tokens("layers saw", seen, "input channel", stacklevel=2)
    return {name: stats[name] for name in walk.layers}


def compress(
    source: nn.Module | Streamed,
    method: str | Method,
    removed: float,
    batches: Iterable | None = None,
    *,
    layers: Iterable[str] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Report:
    """Statistics and surgery in one walk, in place: collect a block, decompose and cut its layers,
    forget, go on.

    method: one with the uniform allocation, statistics of activations alone and no recovery (svd,
    svd_llm; or asvd's ruler as `Method("activation", needs=...)`).  batches: calibration data; not
    needed for plain svd.  dtype: of the factorisation; float32 halves memory and costs accuracy in
    the tail.  From a folder, blocks behind the last of `layers` are read too.  Where something
    fails midway, the model stays partly compressed.
    Raises ValueError for what the walk cannot do (naming it) before anything is changed.
    """
    return next(_at_each(source, method, [removed], batches, layers, dtype, device))


def compress_at(
    source: nn.Module | Streamed,
    method: str | Method,
    removed: Iterable[float],
    batches: Iterable | None = None,
    *,
    layers: Iterable[str] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Iterator[Report]:
    """One walk for several ratios: `for report in compress_at(...)`, the model is at that ratio.

    removed: from the least to the most.  The walk cuts the model at the first; each further ratio
    keeps the first components of what is there, which is what `compress` would have kept, to the
    last bit.  So save or judge a ratio in the loop, but train a copy.
    Raises ValueError as `compress` does, where the ratios do not rise, and where the factors were
    changed in between.
    """
    return _at_each(source, method, [*removed], batches, layers, dtype, device)


def _at_each(
    source, method, removed: list[float], batches, layers, dtype, device
) -> Iterator[Report]:
    """Checks everything now, and works when the first report is asked for."""
    chosen = _streamable(method)
    if not removed:
        raise ValueError("removed is empty: name at least one ratio")
    for fraction in removed:
        check_removed(fraction)
    if any(later <= earlier for earlier, later in pairwise(removed)):
        raise ValueError(
            f"removed = {removed}: each ratio is cut from the one before, so let them rise"
        )
    if chosen.needs and batches is None:
        need = sorted(chosen.needs)[0]
        raise ValueError(f"this method needs batches for the statistic {need!r}: pass batches=...")
    return _reports(Walk(source, layers, device), batches, chosen, removed, dtype)


def _reports(
    walk: Walk, batches, chosen: Method, removed: list[float], dtype: torch.dtype
) -> Iterator[Report]:
    shapes = {name: tuple(module.weight.shape) for name, module in walk.layers.items()}
    before = {name: m * n for name, (m, n) in shapes.items()}
    if chosen.needs:
        walk.enter(batches)
    cut: dict[str, int | None] = {}
    for block in progress(walk, "surgery", total=len(walk.names)):
        stats = block.collect(set(chosen.needs), torch.float64) if chosen.needs else None
        give_back()  # what the pass let go of: the decompositions want larger pieces
        cut |= _cut(walk, block, chosen, removed[0], stats, dtype)
    if walk.streamed:
        walk.streamed.load()
    ranks = {name: cut[name] for name in shapes}
    written: dict[str, list[int]] = {}
    for fraction in removed:
        if written:
            _check_untouched(written, _versions(walk.model, ranks))
            for name in written:
                ranks[name] = rank_for(shapes[name], fraction)
                fewer = first_components(walk.model.get_submodule(name), ranks[name])
                replace_module(walk.model, name, fewer)
        written = _versions(walk.model, ranks)
        yield recount(walk.model, fraction, ranks, before)


def _cut(
    walk: Walk,
    block: Block,
    method: Method,
    removed: float,
    stats: dict[str, LayerStats] | None,
    dtype: torch.dtype,
) -> dict[str, int | None]:
    """Decompose and cut the layers of one block; of them only the factors are left afterwards."""
    if not block.layers:
        return {}
    lazy = decompose_lazily(walk.model, stats, method.weighting, block.layers, keep=0, dtype=dtype)
    ranks = uniform(lazy, removed)
    for name, rank in ranks.items():
        decomposition = lazy.pop(name).last_look(rank) if rank else None
        if stats is not None:
            del stats[name]  # the Gram goes behind the last layer that reads it
        if rank:
            factors = low_rank(name, walk.layers[name], decomposition, rank)
            replace_module(walk.model, name, factors)
        del decomposition
        walk.layers[name] = None  # nobody holds the dense weight any more
    return ranks


def _versions(model: nn.Module, ranks: dict[str, int | None]) -> dict[str, list[int]]:
    """How often the factors of each low-rank layer were written."""
    cut = [name for name, rank in ranks.items() if rank]
    return {name: [version_of(p) for p in model.get_submodule(name).parameters()] for name in cut}


def _check_untouched(left: dict[str, list[int]], now: dict[str, list[int]]) -> None:
    for name in left:
        if now[name] != left[name]:
            raise ValueError(
                f"layer {name!r} was changed since the last ratio, and the next is cut from it: "
                "train a copy, or use surgery.compress_at"
            )


def _streamable(method: str | Method) -> Method:
    chosen = method_named(method)
    for axis, usual in (("allocation", "uniform"), ("recovery", None)):
        value = getattr(chosen, axis)
        if value != usual:
            raise ValueError(
                f"stream.compress forgets each layer when it is cut, and {axis} {value!r} looks at "
                "all of them: use surgery.compress"
            )
    other = sorted(chosen.needs - NEEDS)
    if other:
        raise ValueError(
            f"stream.compress cannot collect the statistic {other[0]!r}: use surgery.compress"
        )
    return chosen


def _on_cpu(stats: dict[str, LayerStats]) -> dict[str, LayerStats]:
    """In place; a tensor that several layers share is moved once, and still shared."""
    moved: dict[int, Tensor] = {}
    for layer in stats.values():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                setattr(layer, name, moved.setdefault(id(value), value.cpu()))
    return stats
