"""The same function in other modules: transposed layers straight, fused ones split, all dense."""

import re

import torch
from torch import Tensor, nn

from prehab_lib import layers
from prehab_lib.factors import LowRankLinear
from prehab_lib.roots import exactly

# Class name of the model, or of a base class of it -> full match on the name of a fused (3h, n)
# matrix, rows in the order query, key, value.  A family stands here only if its attention calls the
# module and never reads its weight.
FUSED = {
    "VisionTransformer": r"blocks\.\d+\.attn\.qkv",
    "GPT2PreTrainedModel": r"(.*\.)?h\.\d+\.attn\.c_attn",
}


class SplitQKV(nn.Module):
    """Three layers (h, n) in place of a fused (3h, n); `weight`, `bias` join theirs on demand."""

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module):
        super().__init__()
        self.q, self.k, self.v = q, k, v

    @property
    def weight(self) -> Tensor:
        return torch.cat([part.weight for part in self.children()])

    @property
    def bias(self) -> Tensor | None:
        biases = [part.bias for part in self.children()]
        return None if biases[0] is None else torch.cat(biases)

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., 3h)
        return torch.cat([part(x) for part in self.children()], dim=-1)


def split_qkv(model: nn.Module) -> list[str]:
    """Replace every fused query-key-value layer by a `SplitQKV`, in place; returns their names.

    Outputs stay, to round-off.  `default_layers` then lists the parts: "blocks.0.attn.qkv.q", ".k",
    ".v".  Split before statistics are collected.  The paper does not say whether it splits; the
    example of its released code does: a ViT-B/16 then has 73 matrices with the head, not 49.

    Raises ValueError where there is nothing to split, or a fused layer is not plain and dense.
    """
    pattern = layers.of_family(model, FUSED)
    modules = dict(model.named_modules())
    names = [name for name in modules if pattern and re.fullmatch(pattern, name)]
    fused = [name for name in names if not isinstance(modules[name], SplitQKV)]
    if not fused:
        lacks = f"{type(model).__name__} has no fused query-key-value layer to split"
        known = f"known are the fused layers of {', '.join(FUSED)}"
        raise ValueError(f"{lacks}: {'it is split already' if names else known}")
    for name in fused:
        if type(modules[name]) is not nn.Linear and not layers.is_conv1d(modules[name]):
            what = f"{name!r} is a {type(modules[name]).__name__}, not a plain nn.Linear"
            raise ValueError(f"{what}: split before anything else")
    layers.refuse_tied_weights(model, fused)
    for name in fused:
        split = SplitQKV(*_linear_parts(modules[name], 3))
        layers.replace_module(model, name, split.train(modules[name].training))
    return fused


def to_linear(model: nn.Module) -> list[str]:
    """Replace `Conv1D` (GPT-2) and Falcon's own layer by the equal `nn.Linear`, in place.

    Returns their names, [] for none.  Outputs stay, to round-off.  GPT-2's weight (n, m) becomes
    (m, n); merged, it is written as it was.
    Raises ValueError where one shares its weight with another module.
    """
    names = [name for name, module in model.named_modules() if layers.is_own_linear(module)]
    layers.refuse_tied_weights(model, names)
    for name in names:
        (linear,) = _linear_parts(model.get_submodule(name), 1)
        layers.replace_module(model, name, linear)
    return names


def _linear_parts(module: nn.Module, count: int) -> list[nn.Linear]:
    """The outputs of an `nn.Linear` or `Conv1D` in equal parts; dtype, mode and flags are kept."""
    W = module.weight.T if layers.is_conv1d(module) else module.weight  # (m, n)
    biases = [None] * count if module.bias is None else module.bias.chunk(count)
    parts = []
    for weight, bias in zip(W.chunk(count), biases, strict=True):
        m, n = weight.shape
        part = nn.Linear(n, m, bias=bias is not None, device="meta")  # draws no random numbers
        for leaf in dict(part.named_parameters()):
            # In memory of its own: a view of the old matrix would keep all of it alive.
            values = (weight if leaf == "weight" else bias).detach()
            own = values.clone(memory_format=torch.contiguous_format)
            setattr(part, leaf, nn.Parameter(own, getattr(module, leaf).requires_grad))
        parts.append(part.train(module.training))
    return parts


# What `storage` writes down by name and does again on a skeleton; the order does not matter.
REWRITES = {"to_linear": to_linear, "split_qkv": split_qkv}


@exactly()
def dense_weight(module: nn.Module) -> Tensor:
    """W (m, n) of a dense, low-rank or split layer, in its dtype; U V is rounded to that once."""
    if isinstance(module, SplitQKV):
        return torch.cat([dense_weight(part) for part in module.children()])
    if not isinstance(module, LowRankLinear):
        return module.weight.detach()
    U, V = module.U.weight.detach(), module.V.weight.detach()
    wide = torch.promote_types(U.dtype, torch.float32)
    return (U.to(wide) @ V.to(wide)).to(U.dtype)


@torch.no_grad()
def fill_dense(skeleton: nn.Module, model: nn.Module) -> nn.Module:
    """Give `skeleton`, fresh from the recipe of `model`, its weights: multiplied out, or shared."""
    sources = dict(model.named_modules())
    filled: dict[int, Tensor] = {}  # id of the skeleton's tensor -> its value; ties stay tied
    for name, module in skeleton.named_modules():
        source = sources[name]
        parameters = list(module.named_parameters(recurse=False))
        for leaf, old in [*parameters, *module.named_buffers(recurse=False)]:
            if id(old) not in filled:
                is_weight = leaf == "weight"
                value = dense_weight(source) if is_weight else getattr(source, leaf).detach()
                if is_weight and layers.is_conv1d(module) and not layers.is_conv1d(source):
                    value = value.T.contiguous()
                filled[id(old)] = nn.Parameter(value) if isinstance(old, nn.Parameter) else value
            setattr(module, leaf, filled[id(old)])
    return skeleton.train(model.training)
