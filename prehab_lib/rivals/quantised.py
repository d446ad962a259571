"""Compressed models in 8 bits: int8 numbers and fp16 scales, in bytes that are really written.

A matrix is a list of vectors, its rows or its columns, and each has one scale: Q(f) = scale ·
round(f / scale), with scale ≥ max |f| / 127 the next number that fp16 has.  So |Q(f) − f| ≤ scale /
2 entry by entry.  Below max |f| = 0.008 the numbers of fp16 grow sparse, and the steps with them:
by a tenth at most down to 0.0001.

Source: Zero Sum SVD (arXiv 2602.02848), rows † (HQ) and * (remap, after Dobi-SVD).  The paper
counts such files with formulas, and its code rounds factors of which only the product with L⁻¹ is
saved, in fp16.  Here stored factors lie on the grid, and scales count: 4 bytes a rank index.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from prehab_lib.budget import check_removed
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_choice
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.hooks import refuse_hooks

LAYOUTS = ("int8", "remap")
LEVELS = 127  # codes go from −127 to 127: the grid is symmetric
TINY = 1e-4 / LEVELS  # of a scale: below it fp16 has too few numbers
SCALE = torch.float16  # of scales, and of what is not on the grid


@dataclass(frozen=True)
class Packing:
    """How the matrix W (m, n) of a layer lies in memory, as it is written down in JSON.

    axis: "rows" (m vectors of n numbers) or "columns" (n vectors of m).  entries: how many of the
    first numbers of each vector are on the 8-bit grid; the rest is fp16.  dtype: what the layer
    computes in.
    """

    axis: str
    entries: int
    dtype: str = "float32"

    def json(self) -> dict:
        return asdict(self)


def absmax_scales(F: Tensor) -> Tensor:
    """scale (k,) for vectors F (k, d), 0 for zeros.  Raises ValueError where none fits a vector."""
    exact = on_factor_device(F).abs().amax(1) / LEVELS
    scale = exact.to(SCALE)
    next_up = (scale.view(torch.int16) + 1).view(SCALE)  # of positive numbers of fp16
    scale = torch.where(scale.double() < exact, next_up, scale)
    if 0 < float(exact.max()) < TINY:
        raise ValueError("all its entries are below 0.0001: no fp16 scale is fine enough")
    if not torch.isfinite(scale).all():
        raise ValueError("a vector has NaN, infinite or huge entries: no fp16 scale fits it")
    return scale.to(F.device)


def to_codes(F: Tensor, scale: Tensor) -> Tensor:
    """The nearest points of the grid, int8 (k, d), for vectors F (k, d) and their scales (k,)."""
    step = on_factor_device(scale)
    points = on_factor_device(F) / step.where(step > 0, 1.0)[:, None]
    return points.round().clamp(-LEVELS, LEVELS).to(F.device, torch.int8).contiguous()


def from_codes(codes: Tensor, scale: Tensor) -> Tensor:
    """The points themselves, float32 (k, d): the product of 8 and 11 bits is exact there."""
    return codes.float() * scale.float()[:, None]


class PackedLinear(nn.Module):
    """y = x Wᵀ + b with W (m, n) held as codes, scales and what is left in fp16 (`Packing`).

    W is made at each call, and nothing trains it; the bias is a parameter as before.  The buffers
    keep their dtypes: `.to(dtype)` of the model changes what the layer computes in.
    """

    def __init__(
        self, in_features: int, out_features: int, packing: Packing, bias: bool = True, device=None
    ):
        super().__init__()
        self.in_features, self.out_features, self.packing = in_features, out_features, packing
        count, size = out_features, in_features
        if packing.axis == "columns":
            count, size = size, count
        codes = torch.zeros(count, packing.entries, dtype=torch.int8, device=device)
        rest = torch.zeros(count, size - packing.entries, dtype=SCALE, device=device)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", torch.zeros(count, dtype=SCALE, device=device))
        self.register_buffer("rest", rest if rest.numel() else None)
        self.bias = None
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=self.dtype))

    @classmethod
    def of(cls, W: Tensor, bias: nn.Parameter | None, axis: str, entries=None) -> "PackedLinear":
        """The layer for W (m, n), of its dtype and device, with the very same bias.

        entries: how many numbers of each vector go on the grid, None for all.  Raises ValueError
        for numbers that fp16 does not reach.
        """
        F = W.detach() if axis == "rows" else W.detach().T  # vectors (k, d)
        entries = F.shape[1] if entries is None else entries
        rest = F[:, entries:].to(SCALE)
        if not torch.isfinite(rest).all():
            raise ValueError("it has entries that are too large for fp16")
        packing = Packing(axis, entries, _name(W.dtype))
        layer = cls(W.shape[1], W.shape[0], packing, bias=False, device=W.device)
        layer.scale = absmax_scales(F[:, :entries])
        layer.codes = to_codes(F[:, :entries], layer.scale)
        layer.rest = rest.contiguous() if rest.numel() else None
        layer.bias = bias
        return layer

    @property
    def dtype(self) -> torch.dtype:
        """What the layer computes in."""
        return getattr(torch, self.packing.dtype)

    @property
    def weight(self) -> Tensor:
        """W (m, n) as it is stored, in the dtype that the layer computes in."""
        F = from_codes(self.codes, self.scale)
        if self.rest is not None:
            F = torch.cat([F, self.rest.float()], dim=1)
        return (F if self.packing.axis == "rows" else F.T).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., m)
        return nn.functional.linear(x, self.weight, self.bias)

    def _apply(self, fn, recurse: bool = True):
        held = {name: getattr(self, name) for name in ("scale", "rest")}
        computes_in = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        self.packing = replace(self.packing, dtype=_name(computes_in))
        super()._apply(fn, recurse)
        for name, before in held.items():
            moved = getattr(self, name)
            if before is not None and moved.dtype != before.dtype:
                setattr(self, name, before.to(moved.device))  # its bits, not its value
        return self


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def hq_removed(removed: float) -> float:
    """What to truncate before 8 bits halve all, or 0.  Raises ValueError for a bad `removed`."""
    return float(max(0, 1 - 2 * (1 - check_removed(removed))))


def quantise(
    model: nn.Module, layout: str = "int8", layers: Iterable[str] | None = None
) -> nn.Module:
    """Put the matrices of low-rank and dense layers in 8 bits, in place; returns the model.

    "int8": both factors, one scale for each rank index of each, k (m + n) + 4 k bytes; a dense W
    one scale a row, m n + 2 m.  "remap": of the larger factor max(m, n) − min(m, n) entries of each
    vector stay fp16: 2 k max(m, n) + 4 k bytes, so that every rank up to min(m, n) pays; for
    low-rank layers alone.  Factors go on the grid as they stand; biases and all else stay.

    layers: names, or None for every low-rank layer.  Raises ValueError for an unknown layout, a
    layer that is not there, quantised already, or dense under "remap", and numbers out of the
    reach of fp16 (naming the layer); the model is then as it was.
    """
    check_choice("layout", layout, LAYOUTS)
    new: dict[str, nn.Module] = {}
    for layer, module in _targets(model, layout, layers).items():
        parts, entries = {layer: (module, "rows")}, None
        if isinstance(module, LowRankLinear):
            parts = {f"{layer}.U": (module.U, "columns"), f"{layer}.V": (module.V, "rows")}
            if layout == "remap":
                entries = min(module.in_features, module.out_features)
        refuse_hooks({name: part for name, (part, _) in parts.items()}, "quantising")
        for name, (part, axis) in parts.items():
            try:
                packed = PackedLinear.of(part.weight, part.bias, axis, entries)
            except ValueError as problem:
                raise ValueError(f"layer {name!r} cannot be put in 8 bits: {problem}") from problem
            new[name] = packed.train(part.training)
    for name, packed in new.items():
        replace_module(model, name, packed)
    return model


def _targets(model: nn.Module, layout: str, layers: Iterable[str] | None) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    low_rank = [name for name in modules if isinstance(modules[name], LowRankLinear)]
    names = low_rank if layers is None else list(layers)
    dense = [name for name in names if name not in low_rank]
    if dense:
        linear_layers(model, dense)
    if not names or (dense and layout == "remap"):
        reason = f"layer {dense[0]!r} is dense" if dense else "no low-rank layer is there"
        remedy = "run surgery.compress first, or name layers for 'int8'"
        raise ValueError(f"layout {layout!r} stores factors and {reason}: {remedy}")
    for name in names:
        if name in low_rank and isinstance(modules[name].U, PackedLinear):
            raise ValueError(f"layer {name!r} is quantised already: name the layers that are not")
    return {name: modules[name] for name in names}
