"""Hidden states carried through the blocks of a model one block at a time: what streaming needs,
and what it costs.

The blocks of a decoder (of any model that hands one hidden state from block to block) are called by
their host in a row. One pass with empty blocks catches what the host gives to each: the first
block's input, masks, positions, rotary tables. After that the host is not needed: hidden states
wait on the CPU, and one block at a time is on the device.

Memory: samples × tokens × width numbers for the hidden states (256 × 2048 × 4096 in bfloat16: 4
GiB), and one block; twice as many while layers of a block are looked at one after the other, as the
next block's then wait beside this one's. Masks and rotary tables are kept once as long as they do
not change from batch to batch; those of padded batches do, and take tokens² numbers a sample.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.batches import forward, mode, move
from prehab_lib.layers import linear_layers
from prehab_lib.scale.skeleton import Streamed
from prehab_lib.statistics.influence import BlockInfluence, block_of
from prehab_lib.statistics.inputs import INPUT_STATISTICS, input_statistics, readers, version_of
from prehab_lib.stats import LayerStats

NEEDS = {*INPUT_STATISTICS, "influence"}


class Walk:
    """The blocks that hold `layers`, and all before the last of them, in the order of execution.

    device: where a block computes; None leaves it where it is.  Iterate to get each `Block` on the
    device, loaded. forget: a block that was read from a folder is dropped after its turn, not kept.
    Raises ValueError where a layer is in no numbered block, or the layers are in several rows of
    blocks.
    """

    def __init__(
        self,
        source: nn.Module | Streamed,
        layers: Iterable[str] | None,
        device=None,
        forget: bool = False,
    ):
        self.streamed = source if isinstance(source, Streamed) else None
        self.model = source.model if self.streamed else source
        self.layers, self.device, self.forget = linear_layers(self.model, layers), device, forget
        self.names = _row_of_blocks(self.model, self.layers)
        self.hidden: list[Tensor] = []
        self.ahead: dict[
            int, Tensor
        ] = {}  # batch -> the next block's, while this one's are still needed
        self.masks: list[Tensor | None] = []
        self.calls: list[dict[str, tuple[tuple, dict]]] = []  # batch -> block -> further arguments

    @torch.no_grad()
    def enter(self, batches: Iterable) -> None:
        """Run everything before the first block, and keep what each block is called with."""
        with (
            mode(self.model, training=False),
            _without_cache(self.model),
            _empty_blocks(self) as caught,
        ):
            device = self._outside()
            for batch in batches:
                self.calls.append({})
                caught.clear()
                with suppress(_Reached):
                    forward(self.model, move(batch, device))
                self.masks.append(
                    batch.get("attention_mask") if isinstance(batch, Mapping) else None
                )
                if missing := [name for name in self.names if name not in self.calls[-1]]:
                    raise ValueError(
                        f"forward does not call block {missing[0]!r}: use stats.collect"
                    )
        if not self.calls:
            raise ValueError("there are no calibration batches: pass at least one")

    def __iter__(self) -> Iterator["Block"]:
        for name in self.names:
            with self._on_device(name):
                yield Block(self, name)
            for number in [*self.ahead]:
                self.hidden[number] = self.ahead.pop(number)

    @contextmanager
    def _on_device(self, name: str) -> Iterator[None]:
        if self.streamed:
            self.streamed.load(name)
        module = self.model.get_submodule(name)
        home = next(module.parameters()).device
        if self.device is not None:
            module.to(self.device)
        try:
            yield
        finally:
            if self.streamed and self.forget:
                self.streamed.unload(name)
            elif self.device is not None:
                module.to(home)

    def _outside(self) -> torch.device:
        """Where the parts beside the blocks are."""
        inside = tuple(f"{name}." for name in self.names)
        found = (
            p.device for name, p in self.model.named_parameters() if not name.startswith(inside)
        )
        return next(found, torch.device("cpu"))


class Block(nn.Module):
    """One block on the device: forward(number of the batch) takes that batch's hidden state through
    it.
    """

    def __init__(self, walk: Walk, name: str):
        super().__init__()
        self.walk, self.name = [walk], name  # in a list: a model inside would be a submodule
        self.target: list | dict | None = walk.hidden  # of what comes out
        self.block = walk.model.get_submodule(name)
        self.layers = {
            layer: walk.layers[layer] for layer in walk.layers if block_of(layer) == name
        }
        self.last = name == walk.names[-1]  # what comes out of it is not asked for

    def forward(self, number: int, attention_mask: Tensor | None = None) -> None:
        walk = self.walk[0]
        x = walk.hidden[number]
        args, kwargs = walk.calls[number][self.name]
        device = next(self.block.parameters()).device
        with suppress(_Reached):
            out = self.block(x.to(device, copy=True), *_to(args, device), **_to(kwargs, device))
            if self.target is not None:
                out = out[0] if isinstance(out, tuple | list) else out
                self.target[number] = out.to(x.device)

    def collect(
        self,
        needs: set[str],
        dtype: torch.dtype,
        advance: bool = True,
        layers: Iterable[str] | None = None,
    ) -> dict[str, LayerStats]:
        """Statistics of the block's layers, as `stats.collect` has them; advance: the hidden states
        pass the block.

        layers: those alone, of `readers`.  A pass that need not go on ends where the last of them
        is called, and the hidden states pass when the block's turn is over, for others may still
        ask for them.
        """
        modules = {name: self.layers[name] for name in (self.layers if layers is None else layers)}
        if not modules:
            if advance:
                self.advance()
            return {}
        self.target = None
        if advance and not self.last:
            self.target = self.walk[0].hidden if layers is None else self.walk[0].ahead
        watchers = [BlockInfluence(self.walk[0].model, modules)] if "influence" in needs else []
        hooks = (
            watchers if layers is None or self.target is not None or watchers else [_Until(modules)]
        )
        sums = needs & set(INPUT_STATISTICS)
        read = input_statistics(self, modules, self._batches(), sums, hooks, dtype)
        stats = {
            name: LayerStats(**found, derived=shared) for name, (found, shared) in read.items()
        }
        for watcher in watchers:
            for name, value in watcher.result().items():
                stats[name].influence = value
        return stats

    def readers(self) -> list[list[str]]:
        """As `activations.readers`, from the first batch that reaches all layers.  Raises
        ValueError where none does.
        """
        self.target = None
        for batch in self._batches():
            if (groups := readers(self, self.layers, batch)) is not None:
                return groups
        raise ValueError(f"no calibration batch reaches all layers of block {self.name!r}")

    @torch.no_grad()
    def advance(self) -> None:
        """The hidden states pass the block as it is now."""
        if self.last:
            return
        self.target = self.walk[0].hidden
        with mode(self, training=False):
            for batch in self._batches():
                self(**move(batch, next(self.block.parameters()).device))

    def _batches(self) -> list[dict]:
        masks = self.walk[0].masks
        return [
            {"number": i} | ({} if mask is None else {"attention_mask": mask})
            for i, mask in enumerate(masks)
        ]


class _Reached(Exception):
    """What was wanted of a forward pass is there: the rest is not needed."""


class _Until(ExitStack):
    """Ends a batch's forward pass where the last of these layers is called, for `input_statistics`."""

    def __init__(self, modules: dict[str, nn.Linear]):
        super().__init__()
        self.modules, self.waiting = modules, set()

    def __enter__(self) -> "_Until":
        for name, module in self.modules.items():
            self.callback(module.register_forward_pre_hook(partial(self._called, name)).remove)
        return super().__enter__()

    def start_batch(self, batch) -> None:
        self.waiting = set(self.modules)

    def _called(self, name: str, *_) -> None:
        self.waiting.discard(name)
        if not self.waiting:
            raise _Reached


@contextmanager
def _empty_blocks(walk: Walk) -> Iterator[list]:
    """Inside, blocks give their input back and note what else they were called with."""
    last: list[tuple[Tensor, int]] = []
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # blocks share masks and tables: one copy a batch
    earlier: list[Tensor] = []  # the copies of the batch before

    def stub(name: str):
        def catch(*args, **kwargs):
            first = args[0] if args else kwargs.pop("hidden_states")
            if name in walk.calls[-1]:
                raise ValueError(
                    f"block {name!r} is called more than once in a forward pass: use stats.collect"
                )
            if name == walk.names[0]:
                earlier[:] = [copy for _, copy in moved.values()]
                moved.clear()
                walk.hidden.append(first.detach().cpu())
            elif last != [] and (last[0][0] is not first or last[0][1] != version_of(first)):
                raise ValueError(
                    f"something changes the hidden state before block {name!r}: use stats.collect"
                )
            last[:] = [(first, version_of(first))]
            walk.calls[-1][name] = (
                _to(args[1:], "cpu", moved, earlier),
                _to(kwargs, "cpu", moved, earlier),
            )
            if name == walk.names[-1]:
                raise _Reached
            return first

        return catch

    with ExitStack() as undo:
        for name in walk.names:
            module = walk.model.get_submodule(name)
            module.forward = stub(name)
            undo.callback(module.__dict__.pop, "forward", None)
        yield last


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Keys and values of past tokens are of no use here, and would grow with every batch."""
    config = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    if use_cache:
        config.use_cache = False
    try:
        yield
    finally:
        if use_cache:
            config.use_cache = use_cache


def _row_of_blocks(model: nn.Module, layers: Iterable[str]) -> list[str]:
    blocks = {layer: block_of(layer) for layer in layers}
    if outside := [layer for layer, block in blocks.items() if block is None]:
        raise ValueError(
            f"{outside[0]!r} is in no block, and streaming goes block by block: name other layers, or use stats.collect"
        )
    rows = {block.rpartition(".")[0] for block in blocks.values()}
    if len(rows) > 1:
        raise ValueError(
            f"the layers are in several rows of blocks, {' and '.join(sorted(rows)[:2])}: stream one at a time"
        )
    row = rows.pop()
    names = [
        f"{row}.{child}" if row else child for child, _ in model.get_submodule(row).named_children()
    ]
    return names[: max(names.index(block) for block in blocks.values()) + 1]


def _to(
    value,
    device,
    moved: dict[int, tuple[Tensor, Tensor]] | None = None,
    earlier: Iterable[Tensor] = (),
):
    """The same nest of tuples, lists and dicts with its tensors on `device`.

    moved: what was moved before, by id.  earlier: copies to be taken where they are equal.
    """
    if isinstance(value, Tensor):
        if moved is None:
            return value.to(device)
        if id(value) not in moved:
            there = value.to(device)
            moved[id(value)] = value, next((copy for copy in earlier if _equal(copy, there)), there)
        return moved[id(value)][1]
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_to(item, device, moved, earlier) for item in value)
    if isinstance(value, dict):
        return {key: _to(item, device, moved, earlier) for key, item in value.items()}
    return value


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
