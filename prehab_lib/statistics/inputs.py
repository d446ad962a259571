"""What the calibration data says about each layer's inputs, in one pass without gradients.

Nothing grows with the number of tokens: a layer keeps n² + 2n numbers in float64, and layers that
read the same tensor (query, key and value of one block) keep one set together.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from prehab_lib.batches import forward, mode
from prehab_lib.roots import exactly, on_factor_device
from prehab_lib.statistics.hooks import calibration, check_finite, check_reached, hooked
from prehab_lib.statistics.influence import BlockInfluence
from prehab_lib.statistics.tokens import RealTokens, aligned

CHUNK = 4096  # tokens per product; the sums over chunks are float64 whatever the products are
ROWS = 256  # of a Gram that are summed at a time, so that no second matrix of its size is there


class Gram:
    """mean of x xᵀ, (n, n)."""

    total: Tensor | None = None

    @exactly()
    def update(self, X: Tensor) -> None:  # X (t, n)
        if self.total is None:
            self.total = X.new_zeros(X.shape[1], X.shape[1], dtype=torch.float64)
        for x in X.split(CHUNK):
            for total, columns in zip(self.total.split(ROWS), x.split(ROWS, dim=1), strict=True):
                total += columns.T @ x

    def finish(self, tokens: int) -> Tensor:
        return self.total.div_(tokens)


class _MeanAbs:
    total: Tensor | float = 0.0

    def update(self, X: Tensor) -> None:
        self.total = self.total + on_factor_device(X.abs().sum(0))

    def finish(self, tokens: int) -> Tensor:
        return self.total / tokens


class _MaxAbs:
    largest: Tensor | float = 0.0

    def update(self, X: Tensor) -> None:
        self.largest = on_factor_device(X.abs().amax(0)).clamp_min(self.largest)

    def finish(self, tokens: int) -> Tensor:
        return self.largest


# Of a layer's inputs X (t, n), which arrive piece by piece; name -> class.
INPUT_STATISTICS = {"gram": Gram, "mean_abs": _MeanAbs, "max_abs": _MaxAbs}


def input_statistics(
    model: nn.Module,
    modules: dict[str, nn.Linear],
    batches: Iterable,
    needs: Iterable[str],
    dtype: torch.dtype = torch.float64,
) -> dict[str, tuple[dict, dict]]:
    """layer -> (its statistics, a dict that all layers which read the same tensor share).

    One pass in eval mode; "tokens" is always among the statistics.  needs: names of
    `INPUT_STATISTICS`, "influence".  dtype: of the products and of sums within a chunk.
    Raises ValueError for no batch, no token, a layer nobody calls, or NaN (naming the layer).
    """
    tokens = RealTokens(model)
    collector = _Collector([name for name in INPUT_STATISTICS if name in needs], dtype, tokens)
    influence = BlockInfluence(model, modules if "influence" in needs else [], tokens)
    listening, quiet = hooked(modules, before=collector.read), mode(model, training=False)
    with tokens.hooks(), listening, influence.hooks, quiet, torch.no_grad():
        for given in calibration(model, batches, "statistics"):
            batch = aligned(model, given)
            tokens.start_batch(batch)
            collector.start_batch()
            forward(model, batch)
    read = collector.finish(modules)
    for name, value in influence.result().items():
        read[name] = read[name][0] | {"influence": value}, read[name][1]
    return read


class _Collector:
    """Adds up every layer's inputs; layers called with one tensor in a row share the sums."""

    def __init__(self, needs: list[str], dtype: torch.dtype, real: RealTokens):
        self.needs, self.dtype, self.real = needs, dtype, real
        self.sums: dict[str, dict] = {}  # layer that read a tensor first -> statistic -> sum
        self.tokens: dict[str, int] = {}
        self.leaders: dict[str, str] = {}  # layer -> the one that read the same tensor first

    def start_batch(self) -> None:
        self.last, self.leader = (None, 0), ""  # the tensor of the last call, and who read it first

    def read(self, name: str, x: Tensor) -> None:
        same = self.last[0] is x and self.last[1] == version_of(x)
        self.last, self.leader = (x, version_of(x)), self.leader if same else name
        first = self.leaders.setdefault(name, self.leader)
        if first != self.leader:
            problem = f"{name!r} read the same tensor as {first!r} in one batch and another tensor"
            remedy = "collect one of them in a call of its own, layers=[...]"
            raise ValueError(f"{problem} in the next: {remedy}")
        if same:
            return
        X = self.real.rows(x.detach())
        check_finite("activations", name, X)
        X = on_factor_device(X, self.dtype)
        if name not in self.sums:
            self.sums[name] = {need: INPUT_STATISTICS[need]() for need in self.needs}
        for total in self.sums[name].values():
            total.update(X)
        self.tokens[name] = self.tokens.get(name, 0) + len(X)

    def finish(self, layers: Iterable[str]) -> dict[str, tuple[dict, dict]]:
        remedy = "does forward call it? where it reads the weight alone (F.linear) leave it out"
        check_reached(layers, self.leaders, "no calibration input reached", remedy)
        shared: dict[str, tuple[dict, dict]] = {}
        for name, sums in self.sums.items():
            values = {need: total.finish(self.tokens[name]) for need, total in sums.items()}
            shared[name] = values | {"tokens": self.tokens[name]}, {}
        return {name: shared[self.leaders[name]] for name in layers}


def version_of(x: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count."""
    return 0 if x.is_inference() else x._version
