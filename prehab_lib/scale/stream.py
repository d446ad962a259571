"""Statistics and surgery one block at a time, for models that fill the memory alone.

`collect` gives what `stats.collect` gives; `compress` what `surgery.compress` gives with a uniform
allocation.  Beyond the model, the device holds one block, its statistics (with `hold="input"` those
of one input alone) and one layer's decomposition.  From a `skeleton.Streamed` folder not even the
model: each block is read from safetensors when its turn comes.
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
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.scale.memory import give_back
from prehab_lib.scale.skeleton import Streamed
from prehab_lib.scale.walk import NEEDS, Block, Walk
from prehab_lib.statistics.inputs import INPUT_STATISTICS, version_of
from prehab_lib.stats import LayerStats
from prehab_lib.surgery import Report, first_components, low_rank, recount

UPSTREAM = ("original", "compressed")
HOLD = ("block", "input")


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
    if other := needs - NEEDS:
        raise ValueError(
            f"needs = {sorted(other)[0]!r} takes gradients or is not known: stream.collect has "
            f"{', '.join(sorted(NEEDS))}; use stats.collect"
        )
    walk = Walk(source, layers, device, forget=True)
    walk.enter(batches)
    stats: dict[str, LayerStats] = {}
    for block in progress(walk, "statistics", total=len(walk.names)):
        stats |= _on_cpu(block.collect(needs, dtype))
    if "gram" in needs:
        seen = {name: (found.tokens, found.gram.shape[0]) for name, found in stats.items()}
        warn_if_few_tokens("layers saw", seen, "input channel", stacklevel=3)
    return {name: stats[name] for name in walk.layers}


def compress(
    source: nn.Module | Streamed,
    method: str | Method,
    removed: float,
    batches: Iterable | None = None,
    *,
    layers: Iterable[str] | None = None,
    upstream: str = "original",
    hold: str = "block",
    dtype: torch.dtype = torch.float64,
    statistics_dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Report:
    """Statistics and surgery in one walk, in place: collect a block, decompose and cut its layers,
    forget, go on.

    method: one with the uniform allocation, statistics of activations alone and no recovery (svd,
    svd_llm; or asvd's ruler as `Method("activation", needs=...)`).  batches: calibration data; not
    needed for plain svd.
    upstream: "original" judges each layer by the inputs it has in the dense model, as
    `surgery.compress` does, with the same result; "compressed" by the inputs that the layers cut
    before leave it (sequential compression, one more pass). hold: "block" collects a block's
    statistics in one pass; "input" those of one input tensor at a time, the last read first, and
    cuts its layers before the next, which nothing behind them feeds.  So one Gram lives at a time,
    to the same result: for LLaMA-7B 0.9 GiB instead of 1.3.  It takes a pass for each (each up to
    where that input is read), and the hidden states wait twice. dtype: of the factorisation;
    float32 halves memory and costs accuracy in the tail.  statistics_dtype: as `dtype` of
    `collect`.

    From a folder, blocks behind the last of `layers` are read too, so that the model is whole
    afterwards. Layers are lost as they are cut: where something fails midway, the model stays
    partly compressed.
    Raises ValueError for what the walk cannot do (naming it) before anything is changed.
    """
    how = dict(upstream=upstream, hold=hold, dtype=dtype, statistics_dtype=statistics_dtype)
    return next(_at_each(source, method, [removed], batches, layers, device, how))


def compress_at(
    source: nn.Module | Streamed,
    method: str | Method,
    removed: Iterable[float],
    batches: Iterable | None = None,
    *,
    layers: Iterable[str] | None = None,
    hold: str = "block",
    dtype: torch.dtype = torch.float64,
    statistics_dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Iterator[Report]:
    """One walk for several ratios: `for report in compress_at(...)`, the model is at that ratio.

    removed: from the least to the most.  The walk cuts the model at the first; each further ratio
    keeps the first components of what is there, which is what `compress` would have kept, to the
    last bit, and takes no statistic and no factorisation. So save or judge a ratio in the loop, but
    train a copy.
    Raises ValueError as `compress` does, where the ratios do not rise, and where the factors were
    changed in between.
    """
    how = dict(upstream="original", hold=hold, dtype=dtype, statistics_dtype=statistics_dtype)
    return _at_each(source, method, [*removed], batches, layers, device, how)


def _at_each(
    source, method, removed: list[float], batches, layers, device, how: dict
) -> Iterator[Report]:
    chosen = _streamable(method)
    if not removed:
        raise ValueError("removed is empty: name at least one ratio")
    for fraction in removed:
        check_removed(fraction)
    if any(later <= earlier for earlier, later in pairwise(removed)):
        raise ValueError(
            f"removed = {removed}: each ratio is cut from the one before, so let them rise"
        )
    for option, known in (("upstream", UPSTREAM), ("hold", HOLD)):
        if how[option] not in known:
            raise ValueError(
                f"{option} = {how[option]!r} is not known: choose one of {', '.join(known)}"
            )
    if chosen.needs and batches is None:
        raise ValueError(
            f"this method needs batches for the statistic {sorted(chosen.needs)[0]!r}: pass batches=..."
        )
    walk = Walk(source, layers, device)
    return _reports(walk, batches, chosen, removed, **how)


def _reports(
    walk: Walk,
    batches,
    chosen: Method,
    removed: list[float],
    upstream: str,
    hold: str,
    dtype,
    statistics_dtype,
) -> Iterator[Report]:
    shapes = {name: tuple(module.weight.shape) for name, module in walk.layers.items()}
    before = {name: m * n for name, (m, n) in shapes.items()}
    if chosen.needs:
        walk.enter(batches)
    cut: dict[str, int | None] = {}
    for block in progress(walk, "surgery", total=len(walk.names)):
        for number, layers in enumerate(_held_at_once(block, chosen, hold)):
            advance = upstream == "original" and number == 0
            stats = (
                block.collect(set(chosen.needs), statistics_dtype, advance, layers)
                if chosen.needs
                else None
            )
            give_back()  # what the pass let go of: the decompositions want larger pieces
            cut |= _cut(walk, block, chosen, removed[0], layers, stats, dtype)
        if chosen.needs and upstream == "compressed":
            block.advance()
    if walk.streamed:
        walk.streamed.load("")
    ranks = {name: cut[name] for name in shapes}
    left = _versions(walk.model, ranks)
    yield recount(walk.model, removed[0], ranks, before)
    for fraction in removed[1:]:
        _check_untouched(walk.model, left)
        ranks = {name: rank and rank_for(shapes[name], fraction) for name, rank in ranks.items()}
        for name, rank in ranks.items():
            if rank:
                replace_module(
                    walk.model, name, first_components(walk.model.get_submodule(name), rank)
                )
        left = _versions(walk.model, ranks)
        yield recount(walk.model, fraction, ranks, before)


def _versions(model: nn.Module, ranks: dict[str, int | None]) -> dict[str, list[int]]:
    """How often the factors of each low-rank layer were written."""
    return {
        name: [version_of(factor) for factor in model.get_submodule(name).parameters()]
        for name, rank in ranks.items()
        if rank
    }


def _check_untouched(model: nn.Module, left: dict[str, list[int]]) -> None:
    now = _versions(model, left)
    if touched := [name for name in left if now[name] != left[name]]:
        raise ValueError(
            f"layer {touched[0]!r} was changed since the last ratio, and the next is cut from it: train a copy, or use "
            "surgery.compress_at"
        )


def _held_at_once(block: Block, method: Method, hold: str) -> list[list[str] | None]:
    """Names of layers whose statistics live together, None for the whole block: what feeds nothing
    else comes first.
    """
    if hold == "block" or not method.needs or not block.layers:
        return [None]
    try:
        return block.readers()[::-1]
    except ValueError as problem:
        raise ValueError(f"{problem}: use hold='block'") from problem


def _cut(
    walk: Walk,
    block: Block,
    method: Method,
    removed: float,
    layers: list[str] | None,
    stats: dict[str, LayerStats] | None,
    dtype: torch.dtype,
) -> dict[str, int | None]:
    """Decompose and cut layers of one block; nothing of them is left afterwards but the factors."""
    names = list(block.layers if layers is None else layers)
    lazy = (
        decompose_lazily(walk.model, stats, method.weighting, names, keep=0, dtype=dtype)
        if names
        else {}
    )
    ranks = uniform(lazy, removed)
    for name, rank in ranks.items():
        found = lazy.pop(name).make(most=rank) if rank else None
        if stats is not None:
            del stats[name]  # the Gram goes behind the last layer that reads it
        if found is not None:
            replace_module(walk.model, name, low_rank(name, block.layers[name], found, rank))
        del found
        walk.layers[name] = block.layers[name] = None  # nobody holds the dense weight any more
    return ranks


def _streamable(method: str | Method) -> Method:
    chosen = method_named(method)
    for axis, value, known in (
        ("allocation", chosen.allocation, "uniform"),
        ("recovery", chosen.recovery, None),
    ):
        if value != known:
            raise ValueError(
                f"stream.compress forgets each layer when it is cut, and {axis} {value!r} looks at all of them: "
                "use surgery.compress"
            )
    if other := chosen.needs - set(INPUT_STATISTICS):
        raise ValueError(
            f"stream.compress cannot collect the statistic {sorted(other)[0]!r}: use surgery.compress"
        )
    return chosen


def _on_cpu(stats: dict[str, LayerStats]) -> dict[str, LayerStats]:
    moved: dict[int, Tensor] = {}
    for found in stats.values():
        for name, value in vars(found).items():
            if isinstance(value, Tensor):
                setattr(found, name, moved.setdefault(id(value), value.cpu()))
    return stats
