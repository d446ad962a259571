"""What a model would hold and compute, counted on tensors without memory: one and two blocks are
enough for any depth.

PyTorch's fake tensors run the family's own code, so whatever a block does is counted: the
operations of its matrix products and attention, what it saves for the backward pass, which layers
read the same tensor.
"""

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from prehab_lib.layers import linear_layers
from prehab_lib.save.rewrite import to_linear
from prehab_lib.statistics.inputs import version_of


@dataclass(frozen=True)
class Layer:
    """One compressed layer W (m, n) of a block; reads: layers with the same number read the same
    tensor.
    """

    name: str
    m: int
    n: int
    reads: int


@dataclass(frozen=True)
class Census:
    """Numbers for one batch of `tokens`; `block` of one block, `outside` of everything else
    together.

    parameters; trained (those of them); forward, backward: operations; saved: bytes kept for the
    backward pass; logits: numbers.
    """

    blocks: int
    layers: list[Layer]
    tokens: int
    width: int
    logits: int
    block: dict[str, int]
    outside: dict[str, int]

    def total(self, what: str) -> int:
        return self.blocks * self.block[what] + self.outside[what]

    @property
    def inputs(self) -> list[int]:
        """Widths n of the distinct inputs of one block."""
        return list({layer.reads: layer.n for layer in self.layers}.values())


def census(
    config, batch: int, window: int, dtype: torch.dtype, train: str, auto_class: str
) -> Census:
    """Count for a transformers `config` and batches of (batch, window) token ids.  Nothing of the
    model's size is allocated.

    dtype: of the forward pass.  train: "layers" or "all", as in `prehab`.
    """
    key = (type(config), config.to_json_string(), batch, window, dtype, train, auto_class)
    if key not in _COUNTED:
        _COUNTED[key] = _extrapolate(config, batch, window, dtype, train, auto_class)
    return _COUNTED[key]


_COUNTED: dict[tuple, Census] = {}  # trying out options asks for the same counts again and again


def _extrapolate(
    config, batch: int, window: int, dtype: torch.dtype, train: str, auto_class: str
) -> Census:
    one, two = (
        _count(_with_blocks(config, k), batch, window, dtype, train, auto_class) for k in (1, 2)
    )
    block = {name: two[name] - one[name] for name in one["counts"]}
    return Census(
        blocks=config.num_hidden_layers,
        layers=one["layers"],
        tokens=batch * window,
        width=one["width"],
        logits=one["logits"],
        block=block,
        outside={name: one[name] - block[name] for name in block},
    )


def _count(
    config, batch: int, window: int, dtype: torch.dtype, train: str, auto_class: str
) -> dict:
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of flags that only matter to a model with numbers in it
        model = getattr(transformers, auto_class).from_config(config, dtype=dtype).train()
        to_linear(model)
        layers = linear_layers(model)
        model.requires_grad_(train == "all")
        for module in layers.values():
            module.weight.requires_grad_(True)
        ids = torch.zeros(batch, window, dtype=torch.long)
        saved, reads = _Saved(model), _Reads(layers)
        with FlopCounterMode(display=False) as operations:
            with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor), reads:
                out = model(input_ids=ids, labels=ids, use_cache=False)
            forward = operations.get_total_flops()
            out.loss.backward()
            backward = operations.get_total_flops() - forward
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "forward": forward,
        "backward": backward,
        "saved": saved.bytes(),
    }
    shapes = [Layer(name, *layers[name].weight.shape, reads.groups[name]) for name in layers]
    return found | {
        "counts": list(found),
        "layers": shapes,
        "width": config.hidden_size,
        "logits": out.logits.numel(),
    }


class _Saved:
    """Tensors kept for the backward pass, each memory once, the parameters' own left out."""

    def __init__(self, model: nn.Module):
        self.known = {_memory(p) for p in model.parameters()} | {
            _memory(b) for b in model.buffers()
        }
        self.kept: dict[int, torch.Tensor] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        # A causal mask (B, 1, T, T) exists on fake tensors only: real attention over unpadded
        # batches needs none.
        is_mask = tensor.ndim == 4 and tensor.shape[1] == 1 and tensor.shape[-1] == tensor.shape[-2]
        if not is_mask and _memory(tensor) not in self.known:
            self.kept[_memory(tensor)] = (
                tensor  # kept alive, so that its memory's number stays its own
            )
        return tensor

    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


class _Reads:
    """Which layers are called with one and the same tensor."""

    def __init__(self, layers: dict[str, nn.Linear]):
        self.layers, self.groups, self.handles = layers, {}, []
        self.last: tuple | None = None

    def __enter__(self) -> None:
        for name, module in self.layers.items():
            self.handles.append(module.register_forward_pre_hook(self._hook(name)))

    def __exit__(self, *_) -> None:
        for handle in self.handles:
            handle.remove()
        self.last = None

    def _hook(self, name: str):
        def read(module: nn.Module, args: tuple) -> None:
            x = args[0]
            if self.last is None or self.last[0] is not x or self.last[1] != version_of(x):
                self.last = (x, version_of(x), len(self.groups))
            self.groups[name] = self.last[2]

        return read


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _with_blocks(config, blocks: int):
    config = copy.deepcopy(config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    return config
