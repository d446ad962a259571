"""Statistics and surgery one block at a time, for models that fill the memory alone.

The results are those of `stats.collect` and, at uniform or given ranks, `surgery.compress`.  The
device holds one block, read when its turn comes, its statistics and one layer's decomposition.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prehab_lib.allocation import ALLOCATIONS, Ranks, step_named
from prehab_lib.layers import replace_module
from prehab_lib.methods import Method, method_named
from prehab_lib.progress import progress
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.scale.memory import give_back
from prehab_lib.scale.walk import NEEDS, Block, Walk
from prehab_lib.statistics.tokens import warn_if_few_tokens
from prehab_lib.stats import LayerStats
from prehab_lib.surgery import Report, check_arguments, low_rank, recount


def collect(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    needs: Iterable[str] = ("gram",),
    *,
    device: torch.device | str | None = None,
) -> dict[str, LayerStats]:
    """As `stats.collect`, block by block: layer name -> `LayerStats`, on the CPU.

    needs: of `NEEDS`, what comes from activations alone.  device: where each block computes; None
    is where it lies.  Raises ValueError for other needs, as `Walk` does, or as `stats.collect`.
    """
    needs = {needs} if isinstance(needs, str) else set(needs)
    _check_needs(needs, "stats.collect")
    walk = Walk(model, layers, device)
    walk.enter(batches)
    stats: dict[str, LayerStats] = {}
    for block in progress(walk, "statistics", total=len(walk.names)):
        stats |= _on_cpu(block.collect(needs))
    if "gram" in needs:
        seen = {name: (layer.tokens, len(layer.gram)) for name, layer in stats.items()}
        warn_if_few_tokens("layers saw", seen, "input channel", stacklevel=2)
    return {name: stats[name] for name in walk.layers}


def compress(
    model: nn.Module,
    method: str | Method,
    removed: float | None,
    batches: Iterable | None = None,
    *,
    layers: Iterable[str] | None = None,
    device: torch.device | str | None = None,
) -> Report:
    """Statistics and surgery in one walk, in place: collect a block, cut its layers, forget, go on.

    method: one that `check_method` takes (svd, svd_llm; or asvd's ruler as `Method("activation",
    needs=...)`).  batches: not for svd.  Raises ValueError for what the walk cannot do, before it;
    what fails midway leaves it half done.
    """
    chosen = method_named(method)
    check_method(chosen)
    if chosen.needs and batches is None:
        raise ValueError(f"the method needs {', '.join(chosen.needs)}: pass batches=...")
    walk = Walk(model, layers, device)
    before = {name: module.weight.numel() for name, module in walk.layers.items()}
    allocate = step_named("allocation", chosen.allocation, ALLOCATIONS)
    ranks = allocate({name: module.weight for name, module in walk.layers.items()}, removed)
    if chosen.needs:
        walk.enter(batches)
    for block in progress(walk, "surgery", total=len(walk.names)):
        stats = block.collect(chosen.needs) if chosen.needs else None
        give_back()  # what the pass let go of: the decompositions want larger pieces
        if block.names:
            _cut(walk, block, chosen, ranks, stats)
    return recount(model, removed, ranks, before)


def check_method(method: Method) -> None:
    """Raises ValueError for ranks that are not uniform or one's own, for gradients, a recovery."""
    for axis, usual in (("allocation", "uniform"), ("recovery", None)):
        value = getattr(method, axis)
        if value != usual and not isinstance(value, Mapping):
            wants = f"{axis} {value!r} looks at all layers, and streaming forgets each that is cut"
            raise ValueError(f"{wants}: use surgery.compress")
    check_arguments(method, {})
    _check_needs(method.needs, "surgery.compress")


def _cut(walk: Walk, block: Block, method: Method, ranks: Ranks, stats) -> None:
    """Decompose and cut the layers of one block; of them only the factors are left afterwards."""
    lazy = decompose_lazily(walk.model, stats, method.weighting, block.names, keep=0)
    for name in block.names:
        if ranks[name]:
            layer = low_rank(name, walk.layers[name], lazy.pop(name), ranks[name])
            replace_module(walk.model, name, layer)
        if stats is not None:
            del stats[name]  # the Gram goes behind the last layer that reads it
        walk.layers[name] = None  # nobody holds the dense weight any more


def _check_needs(needs: Iterable[str], remedy: str) -> None:
    other = sorted(set(needs) - NEEDS)
    if other:
        what = f"streaming has {', '.join(sorted(NEEDS))}, without gradients, and not {other[0]!r}"
        raise ValueError(f"{what}: use {remedy}")


def _on_cpu(stats: dict[str, LayerStats]) -> dict[str, LayerStats]:
    """In place; a tensor that several layers share is moved once, and still shared."""
    moved: dict[int, Tensor] = {}
    for layer in stats.values():
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                setattr(layer, name, moved.setdefault(id(value), value.cpu()))
    return stats
