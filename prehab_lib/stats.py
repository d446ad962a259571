"""What the calibration data says about each layer's inputs, gathered in one streaming pass.

Nothing grows with the number of tokens: a layer keeps n² + 2n numbers in float64, and layers that read the same tensor
(query, key and value of one block) keep one set together.
"""

import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, forward, mode, move, padding_mask
from prehab_lib.layers import linear_layers
from prehab_lib.progress import progress

CHUNK = 4096  # tokens per float32 product; the sums over chunks are float64
TOKENS_PER_CHANNEL = 10  # fewer leave the small eigenvalues of the Gram to chance


@dataclass
class LayerStats:
    """Statistics of one layer W (m, n); None until collected.

    Gram, scales and logit Gram are means over tokens (padding excluded); Fisher, Kronecker factors and `grad` are means
    over samples.  Layers that read the same tensor hold the same `gram` object and share what is derived from it.
    """

    gram: Tensor | None = None  # (n, n)   mean of x xᵀ, uncentred
    mean_abs: Tensor | None = None  # (n,)
    max_abs: Tensor | None = None  # (n,)
    fisher_in: Tensor | None = None  # (n,)
    fisher_out: Tensor | None = None  # (m,)
    kron_in: Tensor | None = None  # (n, n)
    kron_out: Tensor | None = None  # (m, m)
    logit_gram: Tensor | None = None  # (m, m)
    grad: Tensor | None = None  # (m, n)
    influence: float | None = None
    tokens: int | None = None
    derived: dict = field(default_factory=dict, repr=False, compare=False)

    def need(self, name: str, wanted_by: str) -> Tensor:
        """The statistic, or a ValueError that says how to collect it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"{wanted_by} needs the statistic {name!r}: collect it with stats.collect(..., needs={{{name!r}}})"
            )
        return value

    def gram_root(self, floor: float = 0.0) -> Tensor:
        """L (n, n) with L Lᵀ = gram, computed once for all layers that share the Gram.

        floor: where L must be invertible, raise the eigenvalues to at least this times their mean; L is then Q √λ.
        """
        gram = self.need("gram", "the root of the input Gram")
        if not floor:
            return self._once("root", lambda: psd_root(gram))
        eigenvalues, Q = self._once("eigen", lambda: psd_eigen(gram))
        return Q * eigenvalues.clamp_min(floor * eigenvalues.mean()).sqrt()

    def _once(self, name: str, compute: Callable):
        if name not in self.derived:
            self.derived[name] = compute()
        return self.derived[name]


def psd_root(A: Tensor) -> Tensor:
    """L (n, n) in float64 with L Lᵀ = A for a positive semi-definite A (n, n).  Raises as `psd_eigen` does.

    Any root gives the same truncation.  Cholesky's is some ten times cheaper (n³ / 3 operations) and taken where its pivots
    stand clear of round-off; else eigenvectors times root eigenvalues (9 n³), which exist for every A.
    """
    A = _symmetric(A)
    L, failed = torch.linalg.cholesky_ex(A)
    if not failed and L.diagonal().min() ** 2 > A.shape[0] * torch.finfo(A.dtype).eps * A.diagonal().max():
        return L
    eigenvalues, Q = psd_eigen(A)
    return Q * eigenvalues.sqrt()


def psd_eigen(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), ascending and none negative, and eigenvectors Q (n, n) of a positive semi-definite A, in float64.

    Unlike Cholesky it needs no full rank: eigenvalues below n · eps · λ_max are round-off and become 0.
    Raises ValueError where A is not finite, not square or not symmetric.
    """
    A = _symmetric(A)
    eigenvalues, Q = torch.linalg.eigh(A)
    round_off = A.shape[0] * torch.finfo(A.dtype).eps * eigenvalues[-1].clamp_min(0)
    return torch.where(eigenvalues > round_off, eigenvalues, 0), Q


def _symmetric(A: Tensor) -> Tensor:
    """A in float64 with round-off between A and Aᵀ averaged out."""
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"a Gram is a square matrix, not one of shape {tuple(A.shape)}")
    A = on_factor_device(A)
    if not torch.isfinite(A).all():
        raise ValueError("the Gram has NaN or infinite entries: look at the calibration data")
    if not torch.allclose(A, A.T, rtol=1e-6, atol=1e-6 * float(A.abs().max())):
        raise ValueError("the Gram is not symmetric")
    return (A + A.T) / 2


def on_factor_device(A: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Where sums and factorisations happen: the same device in float64, but the CPU for MPS, which has no float64."""
    A = A.detach()
    return A.to("cpu", dtype) if A.device.type == "mps" else A.to(dtype)


class _Gram:
    def __init__(self):
        self.total = 0.0

    def update(self, X: Tensor) -> None:  # X (t, n)
        for x in X.split(CHUNK):
            self.total = self.total + on_factor_device(x.T @ x)

    def finish(self, tokens: int) -> Tensor:
        return self.total / tokens


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
        return {name: total.finish(self.tokens) for name, total in self.sums.items()} | {"tokens": self.tokens}


class _Collector:
    """Hooks that hand every layer's input to its reader; layers called with one tensor in a row get one reader."""

    def __init__(self, needs: set[str]):
        self.needs = needs
        self.readers: dict[str, _Reader] = {}
        self.leader: dict[str, str] = {}
        self.mask: Tensor | None = None
        self.last: tuple[Tensor, int, str] | None = None  # input, its version, the layer that read it first

    def hook(self, name: str) -> Callable:
        def read(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.read(name, args[0] if args else kwargs["input"])

        return read

    def read(self, name: str, x: Tensor) -> None:
        same = self.last is not None and self.last[0] is x and self.last[1] == x._version
        leader = self.last[2] if same else name
        if self.leader.setdefault(name, leader) != leader:
            raise RuntimeError(
                f"{name!r} read the same tensor as {self.leader[name]!r} in one batch and another tensor in the next"
            )
        if same:
            return
        self.last = (x, x._version, name)
        X = _rows(x.detach(), self.mask)
        if not torch.isfinite(X).all():
            raise ValueError(
                f"NaN or infinite activations reach layer {name!r}: look at the calibration data and the weights"
            )
        self.readers.setdefault(name, _Reader(self.needs)).update(X if X.dtype == torch.float64 else X.float())

    def start_batch(self, batch) -> None:
        self.mask = padding_mask(batch)
        self.last = None

    def finish(self, layers: Iterable[str]) -> dict[str, LayerStats]:
        silent = [name for name in layers if name not in self.leader]
        if silent:
            raise ValueError(
                f"no calibration input reached layer {silent[0]!r} (of {len(silent)}): does forward call it?"
            )
        found = {leader: (reader.finish(), {}) for leader, reader in self.readers.items()}
        return {name: LayerStats(**found[self.leader[name]][0], derived=found[self.leader[name]][1]) for name in layers}


def collect(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    needs: Iterable[str] = ("gram",),
    task_loss: Callable | None = None,
) -> dict[str, LayerStats]:
    """One pass over `batches` in eval mode without gradients: layer name -> `LayerStats`.

    layers: names, or None for the model's default.  needs: any of `INPUT_STATISTICS`.  `attention_mask` in a batch
    excludes padding.  Sums are float64 over float32 products of 4096 tokens.  Hooks come off whatever happens.
    task_loss: for statistics that need gradients; none of the present ones does.

    Raises ValueError for an unknown need, no batch, no token, or NaN or infinite activations (naming the layer).
    Warns where a layer sees fewer than 10 n tokens.
    """
    needs = {needs} if isinstance(needs, str) else set(needs)
    if unknown := needs - set(INPUT_STATISTICS):
        raise ValueError(f"needs = {sorted(unknown)[0]!r} is not known: choose from {', '.join(INPUT_STATISTICS)}")
    modules = linear_layers(model, layers)
    collector = _Collector(needs)
    device, seen = device_of(model), 0
    with ExitStack() as cleanup, mode(model, training=False), torch.no_grad():
        for name, module in modules.items():
            cleanup.callback(module.register_forward_pre_hook(collector.hook(name), with_kwargs=True).remove)
        for batch in progress(batches, "statistics"):
            batch = move(batch, device)
            collector.start_batch(batch)
            forward(model, batch)
            seen += 1
    if not seen:
        raise ValueError("there are no calibration batches: pass at least one")
    stats = collector.finish(modules)
    _warn_if_few_tokens(stats, modules)
    return stats


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """(..., n) -> (tokens, n) without the padding."""
    if mask is not None and x.shape[:2] == mask.shape and x.ndim == 3:
        x = x[mask]
    elif mask is not None and x.ndim == 2 and x.shape[0] == mask.numel() != mask.shape[0]:
        x = x[mask.flatten()]
    if x.numel() == 0:
        raise ValueError("a calibration batch has no token left after its padding is taken out")
    return x.reshape(-1, x.shape[-1])


def _warn_if_few_tokens(stats: dict[str, LayerStats], modules: dict[str, nn.Linear]) -> None:
    few = {n: s.tokens for n, s in stats.items() if s.tokens < TOKENS_PER_CHANNEL * modules[n].in_features}
    if few:
        name = min(few, key=lambda n: few[n] / modules[n].in_features)
        warnings.warn(
            f"{len(few)} of {len(stats)} layers saw fewer than {TOKENS_PER_CHANNEL} tokens per input channel; the least is "
            f"{name!r} with {few[name]} tokens for {modules[name].in_features} channels: use more calibration data",
            stacklevel=3,
        )
