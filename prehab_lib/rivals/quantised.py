"""Compressed models in 8 bits, in bytes that are really written.

Source: Zero Sum SVD (arXiv 2602.02848), rows † (HQ) and * (remap, after Dobi-SVD); IO-SVD (arXiv
2605.15626), loss-aware remapping.  The papers count such files with formulas, and their codes round
factors of which only the product with L⁻¹ is saved, in fp16.  Here the factors as they are stored
lie on the grid (`packing`), and scales and masks are counted.  A rank index has one scale for its
column of U and one for its row of V: 4 bytes.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prehab_lib.budget import check_removed
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.layers import default_layers, linear_layers, replace_module
from prehab_lib.rivals.packing import PackedLinear, as_rows, rounded
from prehab_lib.rivals.ranks import Stats
from prehab_lib.roots import on_factor_device

LAYOUTS = ("int8", "remap")
AXES = {"U": "columns", "V": "rows"}  # of a factor, one vector for each rank index


def hq_removed(removed: float) -> float:
    """What to truncate before 8 bits halve everything: max(0, 1 − 2 (1 − removed)), exact for a
    decimal; 0 where `quantise` alone removes as much or more.  Raises ValueError for a bad
    `removed`.
    """
    return float(max(0, 1 - 2 * (1 - check_removed(removed))))


def quantise(
    model: nn.Module, layout: str = "int8", layers: Iterable[str] | None = None
) -> nn.Module:
    """Put the matrices of low-rank and dense layers in 8 bits, in place; returns the model.

    "int8": both factors, one scale for each rank index of each, k (m + n) + 4 k bytes; a dense W
    one scale a row, m n + 2 m.  "remap": of the larger factor max(m, n) − min(m, n) entries of each
    vector stay fp16: 2 k max(m, n) + 4 k bytes, so that every rank up to min(m, n) pays; for
    low-rank layers alone.  Factors go on the grid as they stand; biases and all else stay.

    layers: names, or None for every low-rank layer, and with "int8" those the papers compress that
    are dense still.  Raises ValueError for an unknown layout, a layer that is not there, quantised
    already, or dense under "remap", and numbers out of the reach of fp16 (naming the layer); the
    model is then as it was.
    """
    check_choice("layout", layout, LAYOUTS)
    how: dict[str, dict] = {}
    for name, module in _targets(model, layout, layers).items():
        if isinstance(module, LowRankLinear):
            entries = min(module.in_features, module.out_features) if layout == "remap" else None
            how |= {f"{name}.{side}": {"entries": entries} for side in AXES}
        else:
            how[name] = {}
    return _pack(model, how)


def quantise_by_loss(model: nn.Module, stats: Stats, budget: int) -> nn.Module:
    """Put those vectors in 8 bits that change the loss least, as many as `budget` asks for, the
    rest in fp16; in place.

    The change predicted for a vector f with gradient γ is ⟨γ, Q(f) − f⟩; the smallest magnitudes go
    first.  One bit a vector says where it went.  stats: "grad" of the factors,
    `stats.collect(model, batches, factor_names(model), {"grad"}, task_loss)`; its names are what is
    stored this way (columns of U, rows of V, rows of a dense layer).  budget: bytes of their
    matrices together, scales and bits included.  Raises ValueError for a budget that all in 8 bits
    exceed (naming theirs), a missing gradient, and as `quantise` does; the model is then as it was.
    """
    check_whole(1, budget=budget)
    modules = linear_layers(model, sorted(stats))  # equals go in the order of names
    changes, saved, total = [], [], 0
    for name, module in modules.items():
        axis = _axis_of(model, name)
        F = as_rows(on_factor_device(module.weight), axis)
        gamma = as_rows(stats[name].need("grad", f"layer {name!r}"), axis).to(F)
        try:
            moved = on_factor_device(rounded(F)) - F
        except ValueError as problem:
            raise ValueError(f"layer {name!r}: {problem}") from problem
        count, size = F.shape
        changes.append((gamma * moved).sum(1).abs().cpu())
        saved.append(torch.full((count,), size - 2))  # 2 bytes an entry against 1, and a scale
        total += 2 * count * size + -(-count // 8)
    chosen = _cheapest(torch.cat(changes), torch.cat(saved), total, budget)
    masks = chosen.split([len(change) for change in changes])
    how = {}
    for (name, module), mask in zip(modules.items(), masks, strict=True):
        how[name] = {"mask": mask.to(module.weight.device)}
    return _pack(model, how)


def factor_names(model: nn.Module, layers: Iterable[str] | None = None) -> list[str]:
    """Names of both factors of every low-rank layer, or of those named: what `stats.collect` may be
    asked about.
    """
    low_rank = _names_of(model, LowRankLinear)
    wanted = low_rank if layers is None else list(layers)
    missing = [f"{name!r} is no low-rank layer" for name in wanted if name not in low_rank]
    if missing or not wanted:
        reason = missing[0] if missing else "no low-rank layer is there"
        raise ValueError(f"{reason}: run surgery.compress first")
    return [f"{name}.{side}" for name in wanted for side in AXES]


def stored_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, each once: what `surgery.save` writes beside headers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def file_bytes(folder: str | os.PathLike) -> tuple[int, int]:
    """(bytes of tensors, bytes of headers) in the safetensors files of a folder.  Raises
    FileNotFoundError where there is none.
    """
    tensors, headers = 0, 0
    paths = sorted(Path(folder).glob("*.safetensors"))
    if not paths:
        missing = f"{folder} holds no safetensors file"
        raise FileNotFoundError(f"{missing}: give a folder that surgery.save wrote")
    for path in paths:
        with path.open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        headers += header
        tensors += path.stat().st_size - header
    return tensors, headers


def _cheapest(changes: Tensor, saved: Tensor, total: int, budget: int) -> Tensor:
    """Which vectors go on the grid: boolean, the least changes first until `total` minus their
    savings is within `budget`.
    """
    order = torch.argsort(changes, stable=True)
    order = order[saved[order] > 0]
    left = total - saved[order].cumsum(0)
    least = int(left[-1]) if len(order) else total
    if least > budget:
        all_packed = f"with all these vectors in 8 bits {least} bytes remain"
        raise ValueError(f"budget = {budget}: {all_packed}, give at least that")
    needed = 0 if total <= budget else int((left > budget).sum()) + 1
    chosen = torch.zeros(len(changes), dtype=torch.bool)
    chosen[order[:needed]] = True
    return chosen


def _targets(model: nn.Module, layout: str, layers: Iterable[str] | None) -> dict[str, nn.Module]:
    packed, low_rank = _names_of(model, PackedLinear), _names_of(model, LowRankLinear)
    if layers is None:
        if packed:
            remedy = "name the layers that are not with layers=[...]"
            raise ValueError(f"{packed[0]!r} is quantised already: {remedy}")
        names = low_rank + (_still_dense(model, low_rank) if layout == "int8" else [])
    else:
        names = list(layers)
        if not names:
            raise ValueError("layers is empty: name at least one layer, or leave it out for all")
    for name in names:
        if name in packed or f"{name}.U" in packed or f"{name}.V" in packed:
            raise ValueError(f"layer {name!r} is quantised already")
    dense = [name for name in names if name not in low_rank]
    if dense:
        linear_layers(model, dense)
    if layout == "remap" and (dense or not names):
        reason = f"layer {dense[0]!r} is dense" if dense else "no low-rank layer is there"
        remedy = "run surgery.compress first, or take 'int8'"
        raise ValueError(f"layout 'remap' stores factors and {reason}: {remedy}")
    return {name: model.get_submodule(name) for name in names}


def _names_of(model: nn.Module, kind: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def _still_dense(model: nn.Module, low_rank: list[str]) -> list[str]:
    """The model's default layers that are dense still, not the factors of those that are not."""
    try:
        names = default_layers(model)
    except ValueError:
        if not low_rank:
            raise
        return []  # all that the family has are low-rank by now
    factors = tuple(f"{name}." for name in low_rank)
    return [name for name in names if not name.startswith(factors)]


def _axis_of(model: nn.Module, name: str) -> str:
    parent, _, side = name.rpartition(".")
    return AXES[side] if isinstance(model.get_submodule(parent), LowRankLinear) else "rows"


def _pack(model: nn.Module, how: Mapping[str, dict]) -> nn.Module:
    """Put these dense layers or factors in 8 bits, with those options of `PackedLinear.of`."""
    new = {}
    for name, options in how.items():
        module, axis = model.get_submodule(name), _axis_of(model, name)
        try:
            packed = PackedLinear.of(module.weight, module.bias, axis, **options)
        except ValueError as problem:
            raise ValueError(f"layer {name!r} cannot be put in 8 bits: {problem}") from problem
        new[name] = packed.train(module.training)
    for name, packed in new.items():
        replace_module(model, name, packed)
    return model
