"""The same function in other modules: GPT-2's `Conv1D` as `nn.Linear`, one fused query-key-value
matrix as three, low-rank layers dense again.
"""

import re

import torch
from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import is_conv1d, of_family, refuse_tied_weights, replace_module

# Class name of the model, or of a base class of it -> full match on the name of a fused (3h, n)
# matrix, rows in the order query, key, value.  A family stands here only if its attention calls the
# module and never reads its weight.
FUSED = {
    "VisionTransformer": r"blocks\.\d+\.attn\.qkv",
    "GPT2PreTrainedModel": r"(.*\.)?h\.\d+\.attn\.c_attn",
}


class SplitQKV(nn.Module):
    """Three layers in the place of one fused (3h, n): x (..., n) -> [q(x), k(x), v(x)] (..., 3h).

    Each part is an ordinary `nn.Linear` (h, n) at first, so that any of them can be compressed
    alone.
    """

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module):
        super().__init__()
        self.q, self.k, self.v = q, k, v

    @property
    def in_features(self) -> int:
        return self.q.in_features

    @property
    def out_features(self) -> int:
        return self.q.out_features + self.k.out_features + self.v.out_features

    @property
    def weight(self) -> Tensor:
        """The fused (3h, n), put together on demand, as the host model knew it."""
        return torch.cat([self.q.weight, self.k.weight, self.v.weight])

    @property
    def bias(self) -> Tensor | None:
        """The fused (3h,), put together on demand; None without biases."""
        return None if self.q.bias is None else torch.cat([self.q.bias, self.k.bias, self.v.bias])

    def forward(self, x: Tensor) -> Tensor:  # (..., n) -> (..., 3h)
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def split_qkv(model: nn.Module) -> list[str]:
    """Replace every fused query-key-value layer by a `SplitQKV`, in place; returns their names.
    Outputs stay, to round-off.

    For timm's VisionTransformer ("blocks.0.attn.qkv") and GPT-2 ("transformer.h.0.attn.c_attn").
    Afterwards `default_layers` lists the parts: "blocks.0.attn.qkv.q", ".k", ".v".  Split before
    statistics are collected.

    The choice matters: three (h, h) parts get three ranks and three errors, one (3h, h) matrix
    shares its right factor. The paper does not say which it compresses.  Its released code can do
    both, and the example in its README splits: in a ViT-B/16 that is 73 matrices with the head,
    against 49 fused.  Not splitting is the default here.

    Raises ValueError where there is nothing to split, or where a fused layer is no plain dense
    layer any more.
    """
    pattern = of_family(model, FUSED)
    modules = dict(model.named_modules())
    names = [name for name in modules if pattern and re.fullmatch(pattern, name)]
    fused = [name for name in names if not isinstance(modules[name], SplitQKV)]
    if not fused:
        known = f"known are the fused layers of {', '.join(FUSED)}"
        raise ValueError(
            f"{type(model).__name__} has no fused query-key-value layer to split: "
            f"{'it is split already' if names else known}"
        )
    for name in fused:
        if not (type(modules[name]) is nn.Linear or is_conv1d(modules[name])):
            kind = type(modules[name]).__name__
            raise ValueError(
                f"{name!r} is a {kind}, not a plain nn.Linear: split before anything else"
            )
    refuse_tied_weights(model, fused)
    for name in fused:
        split = SplitQKV(*_linear_parts(modules[name], 3))
        replace_module(model, name, split.train(modules[name].training))
    return fused


def to_linear(model: nn.Module) -> list[str]:
    """Replace every `Conv1D` of transformers (GPT-2) by the equal `nn.Linear`, in place; returns
    their names, [] for none.

    Outputs stay, to round-off.  The weight (n, m) becomes (m, n), so write such a model with
    `storage.save`: transformers' own `save_pretrained` would write shapes that `from_pretrained`
    does not expect.

    Raises ValueError where one shares its weight with another module.
    """
    names = [name for name, module in model.named_modules() if is_conv1d(module)]
    refuse_tied_weights(model, names)
    for name in names:
        (linear,) = _linear_parts(model.get_submodule(name), 1)
        replace_module(model, name, linear)
    return names


def _linear_parts(module: nn.Module, count: int) -> list[nn.Linear]:
    """The outputs of an `nn.Linear` or `Conv1D` in equal parts, each an `nn.Linear` of its own with
    the same device, dtype, mode and flags.
    """
    W = module.weight.T if is_conv1d(module) else module.weight  # (m, n)
    biases = [None] * count if module.bias is None else module.bias.chunk(count)
    parts = []
    for weight, bias in zip(W.chunk(count), biases, strict=True):
        m, n = weight.shape
        part = nn.Linear(n, m, bias=bias is not None, device="meta")  # draws no random numbers
        part.weight = _copy(weight, module.weight)
        if bias is not None:
            part.bias = _copy(bias, module.bias)
        parts.append(part.train(module.training))
    return parts


def _copy(values: Tensor, like: nn.Parameter) -> nn.Parameter:
    """In memory of its own: a view of the old matrix would keep all of it alive."""
    own = values.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(own, requires_grad=like.requires_grad)


# What `storage` writes down by name and does again on a skeleton; the order does not matter.
REWRITES = {"to_linear": to_linear, "split_qkv": split_qkv}


def dense_weight(module: nn.Module) -> Tensor:
    """W (m, n) of a dense or low-rank layer, or of a split query-key-value layer, in the layer's
    dtype.

    U V is summed in float32 or better and rounded once.
    """
    if isinstance(module, SplitQKV):
        return torch.cat([dense_weight(part) for part in (module.q, module.k, module.v)])
    if not isinstance(module, LowRankLinear):
        return module.weight.detach()
    U, V = module.U.weight.detach(), module.V.weight.detach()
    wide = torch.promote_types(U.dtype, torch.float32)
    return (U.to(wide) @ V.to(wide)).to(U.dtype)


@torch.no_grad()
def fill_dense(skeleton: nn.Module, model: nn.Module) -> nn.Module:
    """Give `skeleton`, fresh from the recipe of `model`, the weights of `model`: low-rank layers
    dense, rewrites undone.

    What stayed as it was is shared with `model`, not copied.  Where the skeleton ties two tensors
    they stay tied.
    """
    sources = dict(model.named_modules())
    filled: dict[int, Tensor] = {}  # id of the skeleton's tensor -> its value
    for name, module in skeleton.named_modules():
        source = sources[name]
        was_replaced = type(source) is not type(module)
        transposed = is_conv1d(module)
        is_matrix = type(module) is nn.Linear or transposed
        parameters = list(module.named_parameters(recurse=False))
        for leaf, old in [*parameters, *module.named_buffers(recurse=False)]:
            if id(old) not in filled:
                if was_replaced and is_matrix and leaf == "weight":
                    W = dense_weight(source)  # (m, n)
                    value = W.T.contiguous() if transposed else W
                else:
                    value = getattr(source, leaf).detach()
                filled[id(old)] = nn.Parameter(value) if isinstance(old, nn.Parameter) else value
            setattr(module, leaf, filled[id(old)])
    return skeleton.train(model.training)


def rewrites_between(skeleton: nn.Module, model: nn.Module) -> list[str]:
    """The keys of `REWRITES` that were done to `model` since it was a `skeleton` fresh from its
    recipe.
    """
    transposed = [any(map(is_conv1d, each.modules())) for each in (skeleton, model)]
    done = ["to_linear"] if transposed == [True, False] else []
    if any(isinstance(module, SplitQKV) for module in model.modules()):
        done.append("split_qkv")
    return done
