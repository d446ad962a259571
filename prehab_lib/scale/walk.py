"""Hidden states carried through a model one block at a time: what streaming needs and costs.

The host is asked for the arguments beside the hidden state (masks, positions, rotary tables): its
forward pass runs with empty blocks, so what stands before them runs once for each block.  The
hidden states wait on the CPU: samples × tokens × width numbers.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prehab_lib import stats
from prehab_lib.batches import device_of, forward, mode, move
from prehab_lib.layers import linear_layers
from prehab_lib.statistics.influence import block_of
from prehab_lib.statistics.inputs import version_of
from prehab_lib.statistics.tokens import aligned, is_encoder_decoder, senses

NEEDS = {"gram", "mean_abs", "max_abs", "influence"}  # statistics without gradients
REMEDY = "use stats.collect"  # of all that is no plain row of blocks


class Call(NamedTuple):
    hidden: Tensor
    version: int  # of `hidden` at the call
    args: tuple
    kwargs: dict


class Walk:
    """The blocks up to the last that holds one of `layers`; iterate to get each on the device.

    Raises ValueError for layers in no row of blocks.
    """

    def __init__(self, model: nn.Module, layers, device=None):
        self.model, self.layers, self.device = model, linear_layers(model, layers), device
        self.names = _row_of_blocks(self.model, self.layers)
        if is_encoder_decoder(self.model):
            raise ValueError(f"the model has an encoder and a decoder, two rows: {REMEDY}")
        towers = tuple(f"{name}." for name in senses(self.model))
        self.of_text = not self.names[0].startswith(towers)  # a mask is the text's
        self.batches: list = []
        self.hidden: list[Tensor] = []  # one a batch, in front of the block whose turn it is

    def enter(self, batches: Iterable) -> None:
        """Run everything before the first block; raises ValueError for no batch or no plain row."""
        for given in batches:
            batch = aligned(self.model, given)
            calls = self.calls(batch, self.names[-1])
            for name in self.names:
                if name not in calls:
                    raise ValueError(f"forward does not call block {name!r}: {REMEDY}")
                call, entered = calls[name], calls[self.names[0]]
                if call.hidden is not entered.hidden or call.version != entered.version:
                    raise ValueError(f"the hidden state changes before block {name!r}: {REMEDY}")
            self.batches.append(batch)
            self.hidden.append(entered.hidden.cpu())
        if not self.batches:
            raise ValueError("there are no calibration batches: pass at least one")

    @torch.no_grad()
    def calls(self, batch, last: str) -> dict[str, Call]:
        """block -> how the host calls it, for all blocks up to `last`, while they are empty."""
        calls: dict[str, Call] = {}

        def empty(name: str) -> Callable[..., Tensor]:
            def give_back(*args, **kwargs) -> Tensor:
                if name in calls:
                    raise ValueError(f"forward calls block {name!r} more than once: {REMEDY}")
                hidden = args[0] if args else kwargs.pop("hidden_states")
                calls[name] = Call(hidden, version_of(hidden), args[1:], kwargs)
                if name == last:
                    raise _Reached
                return hidden

            return give_back

        with ExitStack() as undo:
            for name in self.names:
                block = self.model.get_submodule(name)
                own = vars(block).get("forward")  # a user's, as accelerate sets it
                block.forward = empty(name)
                if own is not None:
                    undo.callback(setattr, block, "forward", own)  # called last
                undo.callback(delattr, block, "forward")
            config = getattr(self.model, "config", None)
            if getattr(config, "use_cache", False):  # keys of earlier tokens are of no use here
                config.use_cache = False
                undo.callback(setattr, config, "use_cache", True)
            undo.enter_context(mode(self.model, training=False))
            undo.enter_context(suppress(_Reached))
            forward(self.model, move(batch, self._outside()))
        return calls

    def _outside(self) -> torch.device:
        """Where the parts beside the blocks are."""
        inside = tuple(f"{name}." for name in self.names)
        parameters = self.model.named_parameters()
        beside = (p.device for name, p in parameters if not name.startswith(inside))
        return next(beside, torch.device("cpu"))

    def __iter__(self) -> Iterator["Block"]:
        for name in self.names:
            module = self.model.get_submodule(name)
            home = device_of(module)
            if self.device is not None:
                module.to(self.device)
            try:
                yield Block(self, name)
            finally:
                if self.device is not None:
                    module.to(home)


class Block(nn.Module):
    """A model of one block, under its own name; forward(number): a batch's hidden state passes."""

    def __init__(self, walk: Walk, name: str):
        super().__init__()
        self._walk, self._name = walk, name
        self.names = [layer for layer in walk.layers if block_of(layer) == name]
        parent = self
        *path, number = name.split(".")
        for part in path:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(number, walk.model.get_submodule(name))

    def collect(self, needs: Iterable[str]) -> dict:
        """Statistics of the block's layers, as by `stats.collect`; the hidden states pass it."""
        batches = []
        for number, batch in enumerate(self._walk.batches):
            own = isinstance(batch, Mapping) and self._walk.of_text
            mask = batch.get("attention_mask") if own else None
            batches.append({"number": number, "attention_mask": mask})
        if not self.names:
            with torch.no_grad(), mode(self, training=False):
                for batch in batches:
                    self(**batch)
            return {}
        with warnings.catch_warnings():  # whoever wants statistics alone is warned once, at the end
            warnings.filterwarnings("ignore", message=".*tokens per input channel")
            return stats.collect(self, batches, self.names, needs)

    def forward(self, number: int, attention_mask: Tensor | None) -> None:  # mask: for statistics
        walk, name = self._walk, self._name
        call, waiting = walk.calls(walk.batches[number], name)[name], walk.hidden[number]
        device = device_of(self)
        args, kwargs = tree_map_only(Tensor, lambda x: x.to(device), (call.args, call.kwargs))
        x = waiting.to(device, copy=True)  # a block may add to its input in place
        out = self.get_submodule(name)(x, *args, **kwargs)
        out = out[0] if isinstance(out, tuple | list) else out
        if name != walk.names[-1]:  # nobody asks for what comes out of the last
            walk.hidden[number] = out.to(waiting.device)


class _Reached(Exception):
    """The last block asked for was called."""


def _row_of_blocks(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """All blocks of the row that the layers are in, up to the last that holds one."""
    blocks = {layer: block_of(layer) for layer in layers}
    for layer, block in blocks.items():
        if block is None:
            raise ValueError(f"{layer!r} is in no block: name other layers, or {REMEDY}")
    row, *others = sorted({block.rpartition(".")[0] for block in blocks.values()})
    if others:
        raise ValueError(f"the layers are in rows {row} and {others[0]}: stream one at a time")
    children = model.get_submodule(row).named_children()
    names = [f"{row}.{number}".removeprefix(".") for number, _ in children]
    return names[: max(names.index(block) for block in blocks.values()) + 1]
