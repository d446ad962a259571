"""Compressed models in 8 bits, in bytes that are really written.

Source: Zero Sum SVD (arXiv 2602.02848), rows † (HQ) and * (remap, after Dobi-SVD).  The paper
counts such files with formulas, and its code rounds factors of which only the product with L⁻¹ is
saved, in fp16.  Here the factors as they are stored lie on the grid (`packing`), and scales are
counted.  A rank index has one scale for its column of U and one for its row of V: 4 bytes.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from prehab_lib.budget import check_removed
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_choice
from prehab_lib.layers import default_layers, linear_layers, replace_module
from prehab_lib.rivals.packing import PackedLinear

LAYOUTS = ("int8", "remap")


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
    new: dict[str, nn.Module] = {}
    for layer, module in _targets(model, layout, layers).items():
        parts, entries = {layer: (module, "rows")}, None
        if isinstance(module, LowRankLinear):
            parts = {f"{layer}.U": (module.U, "columns"), f"{layer}.V": (module.V, "rows")}
            if layout == "remap":
                entries = min(module.in_features, module.out_features)
        for name, (part, axis) in parts.items():
            try:
                packed = PackedLinear.of(part.weight, part.bias, axis, entries)
            except ValueError as problem:
                raise ValueError(f"layer {name!r} cannot be put in 8 bits: {problem}") from problem
            new[name] = packed.train(part.training)
    for name, packed in new.items():
        replace_module(model, name, packed)
    return model


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
