"""Hidden states carried through a model one block at a time: what streaming needs and what it
costs.

The blocks of a decoder (of any model that hands one hidden state from block to block) are called by
their host in a row.  For the arguments beside the hidden state (masks, positions, rotary tables)
the host is asked: its forward pass with empty blocks, which give their input back, up to the block
in question.  So what stands before the blocks, an embedding as a rule, runs once for each block.

Memory: one block on the device.  On the CPU samples × tokens × width numbers for the hidden states
(256 × 2048 × 4096 in bfloat16: 4 GiB), and the batches.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prehab_lib import stats
from prehab_lib.batches import device_of, forward, mode, move
from prehab_lib.layers import linear_layers
from prehab_lib.scale.skeleton import Streamed
from prehab_lib.statistics.influence import block_of
from prehab_lib.statistics.inputs import version_of

NEEDS = {"gram", "mean_abs", "max_abs", "influence"}  # statistics without gradients


class Call(NamedTuple):
    """What a host calls a block with: the hidden state, its version then, everything else."""

    hidden: Tensor
    version: int
    args: tuple
    kwargs: dict


class Walk:
    """The blocks that hold `layers`, and all before the last of them, in the order of execution.

    device: where a block computes; None leaves it where it is.  Iterate to get each `Block` on the
    device, loaded.  forget: a block that was read from a folder is dropped after its turn.
    Raises ValueError where a layer is in no numbered block, or the layers are in several rows of
    blocks.
    """

    def __init__(
        self,
        source: nn.Module | Streamed,
        layers: Iterable[str] | None,
        device: torch.device | str | None = None,
        forget: bool = False,
    ):
        self.streamed = source if isinstance(source, Streamed) else None
        self.model = source.model if self.streamed else source
        self.layers, self.device, self.forget = linear_layers(self.model, layers), device, forget
        self.names = _row_of_blocks(self.model, self.layers)
        self.batches: list = []
        self.hidden: list[Tensor] = []  # one a batch, in front of the block whose turn it is

    def enter(self, batches: Iterable) -> None:
        """Run everything before the first block.

        Raises ValueError where there is no batch, or where the host does more than hand the hidden
        state from block to block.
        """
        for batch in batches:
            calls = self.calls(batch, self.names[-1])
            entered = calls.get(self.names[0])
            for name in self.names:
                if name not in calls:
                    raise ValueError(f"forward does not call block {name!r}: use stats.collect")
                call = calls[name]
                if call.hidden is not entered.hidden or call.version != entered.version:
                    raise ValueError(
                        f"something changes the hidden state before block {name!r}: "
                        "use stats.collect"
                    )
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
                    raise ValueError(
                        f"block {name!r} is called more than once in a forward pass: "
                        "use stats.collect"
                    )
                hidden = args[0] if args else kwargs.pop("hidden_states")
                calls[name] = Call(hidden, version_of(hidden), args[1:], kwargs)
                if name == last:
                    raise _Reached
                return hidden

            return give_back

        with ExitStack() as undo:
            for name in self.names:
                block = self.model.get_submodule(name)
                block.forward = empty(name)
                undo.callback(delattr, block, "forward")
            config = getattr(self.model, "config", None)
            if getattr(config, "use_cache", False):  # keys of earlier tokens are of no use here
                config.use_cache = False
                undo.callback(setattr, config, "use_cache", True)
            undo.enter_context(mode(self.model, training=False))
            undo.enter_context(suppress(_Reached))
            forward(self.model, move(batch, self._outside()))
        return calls

    def __iter__(self) -> Iterator["Block"]:
        for name in self.names:
            with self._on_device(name):
                yield Block(self, name)

    @contextmanager
    def _on_device(self, name: str) -> Iterator[None]:
        if self.streamed:
            self.streamed.load(name)
        block = self.model.get_submodule(name)
        home = device_of(block)
        if self.device is not None:
            block.to(self.device)
        try:
            yield
        finally:
            if self.streamed and self.forget:
                self.streamed.unload(name)
            elif self.device is not None:
                block.to(home)

    def _outside(self) -> torch.device:
        """Where the parts beside the blocks are."""
        inside = tuple(f"{name}." for name in self.names)
        for name, parameter in self.model.named_parameters():
            if not name.startswith(inside):
                return parameter.device
        return torch.device("cpu")


class Block:
    """One block on the device, and the names of its layers."""

    def __init__(self, walk: Walk, name: str):
        self.walk, self.name = walk, name
        self.module = walk.model.get_submodule(name)
        self.layers = [layer for layer in walk.layers if block_of(layer) == name]

    def collect(
        self, needs: set[str], dtype: torch.dtype = torch.float64
    ) -> dict[str, stats.LayerStats]:
        """Statistics of the block's layers, as `stats.collect` has them; the hidden states pass the
        block.
        """
        alone, batches = _Alone(self), []
        for number, batch in enumerate(self.walk.batches):
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            padding = {} if mask is None else {"attention_mask": mask}
            batches.append({"number": number} | padding)
        if not self.layers:
            with torch.no_grad(), mode(alone, training=False):
                for batch in batches:
                    alone(**batch)
            return {}
        with warnings.catch_warnings():  # whoever wants statistics alone is warned once, at the end
            warnings.filterwarnings("ignore", message=".*tokens per input channel")
            return stats.collect(alone, batches, self.layers, needs, dtype=dtype)

    def carry(self, number: int) -> None:
        """Take the hidden state of one batch through the block."""
        call = self.walk.calls(self.walk.batches[number], self.name)[self.name]
        waiting, device = self.walk.hidden[number], device_of(self.module)
        args, kwargs = tree_map_only(Tensor, lambda x: x.to(device), (call.args, call.kwargs))
        x = waiting.to(device, copy=True)  # a block may add to its input in place
        out = self.module(x, *args, **kwargs)
        out = out[0] if isinstance(out, tuple | list) else out
        last = self.name == self.walk.names[-1]  # nobody asks for what comes out of it
        self.walk.hidden[number] = waiting if last else out.to(waiting.device)


class _Alone(nn.Module):
    """A model of one block, which has its own name there, so that `stats.collect` finds its layers.

    forward(number, attention_mask=None): the hidden state of that batch passes.
    """

    def __init__(self, block: Block):
        super().__init__()
        self._carry = block.carry
        parent = self
        *path, number = block.name.split(".")
        for part in path:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(number, block.module)

    def forward(self, number: int, attention_mask: Tensor | None = None) -> None:
        self._carry(number)  # the mask is for the statistics, which leave padding out


class _Reached(Exception):
    """The last block asked for was called: the rest of the forward pass is not needed."""


def _row_of_blocks(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """All blocks of the row that the layers are in, up to the last that holds one."""
    blocks = {layer: block_of(layer) for layer in layers}
    for layer, block in blocks.items():
        if block is None:
            raise ValueError(
                f"{layer!r} is in no block, and streaming goes block by block: name other layers, "
                "or use stats.collect"
            )
    rows = sorted({block.rpartition(".")[0] for block in blocks.values()})
    if len(rows) > 1:
        raise ValueError(
            f"the layers are in several rows of blocks, {rows[0]} and {rows[1]}: stream one at a "
            "time"
        )
    row = f"{rows[0]}." if rows[0] else ""
    names = [f"{row}{number}" for number, _ in model.get_submodule(rows[0]).named_children()]
    return names[: max(names.index(block) for block in blocks.values()) + 1]
