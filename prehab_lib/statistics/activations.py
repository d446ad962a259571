"""What the calibration data says about each layer's inputs, in one streaming pass without
gradients.

Nothing grows with the number of tokens: a layer keeps n² + 2n numbers in float64, and layers that
read the same tensor (query, key and value of one block) keep one set together.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, forward, mode, move, padding_mask
from prehab_lib.progress import progress
from prehab_lib.roots import on_factor_device

CHUNK = 4096  # tokens per product; the sums over chunks are float64 whatever the products are
ROWS = 256  # of a Gram that are summed at a time: a second matrix of its size would be the largest thing of a pass


class _Gram:
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
        self.largest = None

    def update(self, X: Tensor) -> None:
        here = on_factor_device(X.abs().amax(0))
        self.largest = here if self.largest is None else torch.maximum(self.largest, here)

    def finish(self, tokens: int) -> Tensor:
        return self.largest


INPUT_STATISTICS = {"gram": _Gram, "mean_abs": _MeanAbs, "max_abs": _MaxAbs}


def input_statistics(
    model: nn.Module,
    modules: dict[str, nn.Linear],
    batches: Iterable,
    needs: Iterable[str],
    hooks: Iterable = (),
    dtype: torch.dtype = torch.float64,
) -> dict[str, tuple[dict, dict]]:
    """layer -> (its statistics, a dict shared by all layers that read the same tensor), from one
    pass in eval mode.

    hooks: context managers with `start_batch(batch)`, entered for the pass: other statistics that
    need no gradient. dtype: of the products and of sums within a chunk.
    Raises ValueError for no batch, no token, NaN or infinite activations (naming the layer), or a
    layer nobody calls.
    """
    collector = _Collector(set(needs), dtype)
    device, seen = device_of(model), 0
    with ExitStack() as cleanup, mode(model, training=False), torch.no_grad():
        for name, module in modules.items():
            cleanup.callback(
                module.register_forward_pre_hook(collector.hook(name), with_kwargs=True).remove
            )
        for hook in hooks:
            cleanup.enter_context(hook)
        for batch in progress(batches, "statistics"):
            batch = move(batch, device)
            for listener in (collector, *hooks):
                listener.start_batch(batch)
            forward(model, batch)
            seen += 1
    if not seen:
        raise ValueError("there are no calibration batches: pass at least one")
    return collector.finish(modules)


def readers(model: nn.Module, modules: dict[str, nn.Linear], batch) -> list[list[str]] | None:
    """Names of the layers by the tensor they read, in the order of their calls; None where this
    batch does not reach all.

    What is called later feeds nothing that was called before.  So a layer called twice raises
    ValueError, naming it.
    """
    groups: list[list[str]] = []
    last: list[tuple[Tensor, int]] = []

    def hook(name: str) -> Callable:
        def read(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if any(name in group for group in groups):
                raise ValueError(f"layer {name!r} is called more than once in a forward pass")
            now = args[0] if args else kwargs["input"]
            same = last and last[0][0] is now and last[0][1] == version_of(now)
            groups[-1].append(name) if same else groups.append([name])
            last[:] = [(now, version_of(now))]

        return read

    with ExitStack() as cleanup, mode(model, training=False), torch.no_grad():
        for name, module in modules.items():
            cleanup.callback(module.register_forward_pre_hook(hook(name), with_kwargs=True).remove)
        forward(model, move(batch, device_of(model)))
    return groups if sum(map(len, groups)) == len(modules) else None


class _Reader:
    """Sums over the inputs of one layer, or of several that read the same tensor."""

    def __init__(self, needs: Iterable[str]):
        self.sums = {name: INPUT_STATISTICS[name]() for name in needs}
        self.tokens = 0

    def update(self, X: Tensor) -> None:
        self.tokens += X.shape[0]
        for total in self.sums.values():
            total.update(X)

    def finish(self) -> dict:
        return {name: total.finish(self.tokens) for name, total in self.sums.items()} | {
            "tokens": self.tokens
        }


class _Collector:
    """Hooks that hand every layer's input to its reader; layers called with one tensor in a row get
    one reader.
    """

    def __init__(self, needs: set[str], dtype: torch.dtype):
        self.needs, self.dtype = needs, dtype
        self.readers: dict[str, _Reader] = {}
        self.leader: dict[str, str] = {}
        self.mask: Tensor | None = None
        self.last: tuple[Tensor, int, str] | None = (
            None  # input, its version, the layer that read it first
        )

    def hook(self, name: str) -> Callable:
        def read(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.read(name, args[0] if args else kwargs["input"])

        return read

    def read(self, name: str, x: Tensor) -> None:
        same = self.last is not None and self.last[0] is x and self.last[1] == version_of(x)
        leader = self.last[2] if same else name
        if self.leader.setdefault(name, leader) != leader:
            raise ValueError(
                f"{name!r} read the same tensor as {self.leader[name]!r} in one batch and another tensor in the next: "
                "collect one of them in a call of its own, layers=[...]"
            )
        if same:
            return
        self.last = (x, version_of(x), name)
        X = token_rows(x.detach(), self.mask)
        if not torch.isfinite(X).all():
            raise ValueError(
                f"NaN or infinite activations reach layer {name!r}: look at the calibration data and the weights"
            )
        self.readers.setdefault(name, _Reader(self.needs)).update(on_factor_device(X, self.dtype))

    def start_batch(self, batch) -> None:
        self.mask = padding_mask(batch)
        self.last = None

    def finish(self, layers: Iterable[str]) -> dict[str, tuple[dict, dict]]:
        silent = [name for name in layers if name not in self.leader]
        if silent:
            raise ValueError(
                f"no calibration input reached layer {silent[0]!r} (of {len(silent)}): does forward call it?"
            )
        found = {leader: (reader.finish(), {}) for leader, reader in self.readers.items()}
        return {name: found[self.leader[name]] for name in layers}


def version_of(x: Tensor) -> int:
    """Counts the changes of a tensor in place; tensors of inference mode do not count, and stay at
    0.
    """
    return 0 if x.is_inference() else x._version


def token_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """(..., n) -> (tokens, n) without the padding.  Raises ValueError where nothing is left."""
    if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
        x = x[mask]
    elif mask is not None and x.ndim == 3 and x.shape[:2] == mask.T.shape:  # tokens first
        x = x[mask.T]
    elif mask is not None and x.ndim == 2 and x.shape[0] == mask.numel() != mask.shape[0]:
        x = x[mask.flatten()]
    if x.numel() == 0:
        raise ValueError("a calibration batch has no token left after its padding is taken out")
    return x.reshape(-1, x.shape[-1])
