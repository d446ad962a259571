"""What the calibration data says about each layer's inputs, in one pass without gradients.

Nothing grows with the number of tokens: a layer keeps n² + 2n numbers in float64, and layers that
read the same tensor (query, key and value of one block) keep one set together.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, forward, mode, move, padding_mask, token_rows
from prehab_lib.progress import progress
from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.influence import BlockInfluence

CHUNK = 4096  # tokens per product; the sums over chunks are float64 whatever the products are
ROWS = 256  # of a Gram that are summed at a time, so that no second matrix of its size is there


class Gram:
    """mean of x xᵀ, (n, n)."""

    def __init__(self):
        self.total: Tensor | None = None

    def update(self, X: Tensor) -> None:  # X (t, n)
        if self.total is None:
            self.total = X.new_zeros(X.shape[1], X.shape[1], dtype=torch.float64)
        for x in X.split(CHUNK):
            for total, columns in zip(self.total.split(ROWS), x.split(ROWS, dim=1), strict=True):
                total += columns.T @ x

    def finish(self, tokens: int) -> Tensor:
        return self.total.div_(tokens)


class _MeanAbs:
    def __init__(self):
        self.total = 0.0

    def update(self, X: Tensor) -> None:
        self.total = self.total + on_factor_device(X.abs().sum(0))

    def finish(self, tokens: int) -> Tensor:
        return self.total / tokens


class _MaxAbs:
    def __init__(self):
        self.largest: Tensor | None = None

    def update(self, X: Tensor) -> None:
        here = on_factor_device(X.abs().amax(0))
        self.largest = here if self.largest is None else torch.maximum(self.largest, here)

    def finish(self, tokens: int) -> Tensor:
        return self.largest


# Of a layer's inputs X (t, n), which arrive piece by piece; name -> class.
INPUT_STATISTICS = {"gram": Gram, "mean_abs": _MeanAbs, "max_abs": _MaxAbs}
# Of other things in the same pass: name -> context manager with start_batch(batch) and result().
WATCHERS = {"influence": BlockInfluence}


def input_statistics(
    model: nn.Module,
    modules: dict[str, nn.Linear],
    batches: Iterable,
    needs: Iterable[str],
    hooks: Iterable = (),
    dtype: torch.dtype = torch.float64,
) -> dict[str, tuple[dict, dict]]:
    """layer -> (its statistics, a dict that all layers which read the same tensor share).

    One pass in eval mode; the number of tokens is always among the statistics.  needs: names of
    `INPUT_STATISTICS` and `WATCHERS`.  hooks: context managers with `start_batch(batch)`, entered
    for the pass.  dtype: of the products and of sums within a chunk.

    Raises ValueError for no batch, no token, NaN or infinite activations (naming the layer), or a
    layer nobody calls.
    """
    collector = _Collector([name for name in INPUT_STATISTICS if name in needs], dtype)
    watchers = {name: make(model, modules) for name, make in WATCHERS.items() if name in needs}
    listeners = [*hooks, *watchers.values()]
    device, empty = device_of(model), True
    with ExitStack() as cleanup, mode(model, training=False), torch.no_grad():
        for name, module in modules.items():
            read = partial(collector.read, name)
            cleanup.callback(module.register_forward_pre_hook(read, with_kwargs=True).remove)
        for listener in listeners:
            cleanup.enter_context(listener)
        for batch in progress(batches, "statistics"):
            batch, empty = move(batch, device), False
            for listener in (collector, *listeners):
                listener.start_batch(batch)
            forward(model, batch)
    if empty:
        raise ValueError("there are no calibration batches: pass at least one")
    read = collector.finish(modules)
    for statistic, watcher in watchers.items():
        for name, value in watcher.result().items():
            read[name] = read[name][0] | {statistic: value}, read[name][1]
    return read


def readers(model: nn.Module, modules: dict[str, nn.Linear], batch) -> list[list[str]] | None:
    """Names of the layers by the tensor they read, in the order of their calls; None where this
    batch does not reach all.

    What is called later feeds nothing that was called before.  So a layer called twice raises
    ValueError, naming it.
    """
    groups: list[list[str]] = []
    last: tuple[Tensor, int] | None = None

    def read(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal last
        if any(name in group for group in groups):
            raise ValueError(f"layer {name!r} is called more than once in a forward pass")
        x = args[0] if args else kwargs["input"]
        if last is not None and last[0] is x and last[1] == version_of(x):
            groups[-1].append(name)
        else:
            groups.append([name])
        last = (x, version_of(x))

    with ExitStack() as cleanup, mode(model, training=False), torch.no_grad():
        for name, module in modules.items():
            hook = module.register_forward_pre_hook(partial(read, name), with_kwargs=True)
            cleanup.callback(hook.remove)
        forward(model, move(batch, device_of(model)))
    return groups if sum(map(len, groups)) == len(modules) else None


class _Collector:
    """Adds up every layer's inputs; layers called with one tensor in a row share the sums."""

    def __init__(self, needs: list[str], dtype: torch.dtype):
        self.needs, self.dtype = needs, dtype
        self.sums: dict[str, dict] = {}  # layer that read a tensor first -> statistic -> sum
        self.tokens: dict[str, int] = {}
        self.leader: dict[str, str] = {}  # layer -> the one that read the same tensor first
        self.mask: Tensor | None = None
        self.last: tuple[Tensor, int, str] | None = None  # input, its version, who read it first

    def start_batch(self, batch) -> None:
        self.mask = padding_mask(batch)
        self.last = None

    def read(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["input"]
        same = self.last is not None and self.last[0] is x and self.last[1] == version_of(x)
        leader = self.last[2] if same else name
        if self.leader.setdefault(name, leader) != leader:
            raise ValueError(
                f"{name!r} read the same tensor as {self.leader[name]!r} in one batch and another "
                "tensor in the next: collect one of them in a call of its own, layers=[...]"
            )
        if same:
            return
        self.last = (x, version_of(x), name)
        X = token_rows(x.detach(), self.mask)
        if not torch.isfinite(X).all():
            raise ValueError(
                f"NaN or infinite activations reach layer {name!r}: look at the calibration data "
                "and the weights"
            )
        X = on_factor_device(X, self.dtype)
        if name not in self.sums:
            self.sums[name] = {need: INPUT_STATISTICS[need]() for need in self.needs}
        for total in self.sums[name].values():
            total.update(X)
        self.tokens[name] = self.tokens.get(name, 0) + len(X)

    def finish(self, layers: Iterable[str]) -> dict[str, tuple[dict, dict]]:
        silent = [name for name in layers if name not in self.leader]
        if silent:
            raise ValueError(
                f"no calibration input reached layer {silent[0]!r} (of {len(silent)}): does "
                "forward call it?"
            )
        shared: dict[str, tuple[dict, dict]] = {}
        for name, sums in self.sums.items():
            values = {need: total.finish(self.tokens[name]) for need, total in sums.items()}
            shared[name] = values | {"tokens": self.tokens[name]}, {}
        return {name: shared[self.leader[name]] for name in layers}


def version_of(x: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    return 0 if x.is_inference() else x._version
