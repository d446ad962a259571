"""What can be done to the factors after surgery without training: a refit in closed form."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, forward, mode, move
from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import warn_if_few_tokens
from prehab_lib.layers import refuse_packed
from prehab_lib.progress import progress
from prehab_lib.rivals.components import whole
from prehab_lib.rivals.refit import refit
from prehab_lib.rivals.trial import check_given
from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.inputs import input_statistics, version_of


@torch.no_grad()
def closed_form(
    model: nn.Module,
    *,
    decompositions: Mapping[str, Decomposition],
    stats=None,
    weighting=None,
    task_loss=None,
    batches: Iterable | None = None,
    validation=None,
) -> None:
    """Refit every U to the inputs that its layer gets in the compressed model, in place: U ← argmin
    ‖X̃ (W − U V)ᵀ‖_F.

    In the order of execution, U' = U + (W − U V) G̃ Vᵀ (V G̃ Vᵀ)⁺, where G̃ is the Gram of the
    inputs X̃ that have passed the layers before, already compressed and already refitted.  W is
    left · right of the layer's decomposition; V, the bias and dense layers stay as they are.  In
    float64; what the data do not show keeps its U (`refit`).
    If one layer fails, all get their U back.  The target is what W says to X̃, not to the dense
    model's inputs: no layer's own error grows, but the drift of its inputs is not repaired, and the
    task may gain or lose.

    batches: calibration data, gone over once for the order of the layers and once for every
    distinct input of a low-rank layer; those passes stop there, so about half a forward pass of
    each batch an input.  Memory: one G̃ (n, n) at a time, and a copy of every U.

    Source: SVD-LLM, earlier version and the released code (arXiv 2403.07378v1), layer-wise
    closed-form update. Raises ValueError naming what is missing, or a layer that is never called,
    is called otherwise from batch to batch, gets NaN, or leaves its precision.
    Warns where a layer sees fewer than 10 r tokens.
    """
    check_arguments(batches)
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)
    }
    layers = {name: module for name, module in found.items() if name in decompositions}
    refuse_packed(layers, "refit")
    before = {name: layer.U.weight.clone() for name, layer in layers.items()}
    tokens = {}
    try:
        for names, calls in progress(_reading_order(model, layers, batches), "closed form"):
            first = layers[names[0]].V
            read = input_statistics(
                _Until(model, first, calls), {names[0]: first}, batches, {"gram"}
            )[names[0]][0]
            for name in names:
                tokens[name] = read["tokens"]
                _update(name, layers[name], decompositions[name], read["gram"])
    except BaseException:
        for name, layer in layers.items():
            layer.U.weight.copy_(before[name])
        raise
    seen = {name: (count, layers[name].rank) for name, count in tokens.items()}
    warn_if_few_tokens("layers were refitted to", seen, "rank", stacklevel=3)


def check_arguments(batches=None, **_) -> None:
    check_given("recovery 'closed_form'", batches=batches)


def _update(name: str, layer: LowRankLinear, decomposition: Decomposition, gram: Tensor) -> None:
    U, V = on_factor_device(layer.U.weight), on_factor_device(layer.V.weight)
    decomposition = whole(decomposition)
    W = decomposition.left.to(U) @ decomposition.right.to(U)
    new = refit(W, U, V, gram).to(layer.U.weight)
    if not torch.isfinite(new).all():
        raise ValueError(f"layer {name!r}: the refitted factor is not finite in {new.dtype}")
    layer.U.weight.copy_(new)


def _reading_order(
    model: nn.Module, layers: Mapping[str, LowRankLinear], batches: Iterable
) -> list[tuple[list[str], int]]:
    """(layers that read the same tensor at every call, number of calls in one forward), in order of
    execution.

    Raises ValueError where that changes from batch to batch: half of a layer's inputs would be left
    out.
    """
    reads: dict[str, list[int]] = {}
    last: tuple[Tensor, int] | None = None
    count = 0

    def hook(name: str) -> Callable:
        def read(module: nn.Module, args: tuple) -> None:
            nonlocal last, count
            x = args[0]
            if last is None or last[0] is not x or last[1] != version_of(x):
                last, count = (x, version_of(x)), count + 1
            reads[name].append(count)

        return read

    seen = None
    with ExitStack() as hooks, mode(model, training=False):
        for name, layer in layers.items():
            hooks.callback(layer.V.register_forward_pre_hook(hook(name)).remove)
        for batch in batches:
            reads, last, count = {name: [] for name in layers}, None, 0
            forward(model, move(batch, device_of(model)))
            if seen is not None and reads != seen:
                name = next(name for name in layers if reads[name] != seen[name])
                raise ValueError(
                    f"layer {name!r} is called otherwise in one batch than in another: use one kind of batch"
                )
            seen = reads
    if seen is None:
        raise ValueError("recovery 'closed_form' got no batches: pass at least one")
    if silent := [name for name in layers if not seen[name]]:
        raise ValueError(
            f"no calibration input reached layer {silent[0]!r} (of {len(silent)}): does forward call it?"
        )
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in layers:
        groups.setdefault(tuple(seen[name]), []).append(name)
    return [(groups[key], len(key)) for key in sorted(groups)]


class _Reached(Exception):
    """The rest of the forward pass is not needed."""


class _Until(nn.Module):
    """A model whose forward ends, without a result, after so many calls of one of its layers."""

    def __init__(self, model: nn.Module, layer: nn.Module, calls: int):
        super().__init__()
        self.model, self.layer, self.calls = model, layer, calls

    def forward(self, *args, **kwargs) -> None:
        left = self.calls

        def stop(*_) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise _Reached

        handle = self.layer.register_forward_hook(stop)
        try:
            self.model(*args, **kwargs)
        except _Reached:
            pass
        finally:
            handle.remove()
