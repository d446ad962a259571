"""Compression in stages: cut, correct towards the original weights, look again at the model as it
is now, and cut anew.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from prehab_lib.budget import check_removed
from prehab_lib.inputs import check_whole
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.methods import Method, method_named
from prehab_lib.rivals.correction import (
    as_linear,
    low_rank_layers,
    product,
    product_gradients,
    restoring_step,
)
from prehab_lib.rivals.trial import check_given
from prehab_lib.roots import on_factor_device
from prehab_lib.stats import collect
from prehab_lib.surgery import Report, check_arguments, compress


def compress_in_stages(
    model: nn.Module,
    method: str | Method,
    removed: float,
    batches: Iterable,
    task_loss: Callable,
    *,
    stages: int = 2,
    correction_batches: Sequence[Iterable] | None = None,
    gradients: int = 1,
    layers: Iterable[str] | None = None,
    validation: Iterable | None = None,
) -> Report:
    """`surgery.compress` `stages` times over, in place; where anything fails, the model is as it
    was.

    Each stage goes from full rank to the whole target `removed`: this is no gradual schedule.
    After every stage but the last, each low-rank layer becomes dense again with the weight W' + ΔW'
    (m, n): W' = U V is what was kept and ΔW' the smallest step that restores, to first order of the
    loss, what was lost of the *original* W (`correction.restoring_step`). A layer that a stage
    leaves dense keeps the weight it has then: the original one, or a corrected one where an earlier
    stage had cut it.  Then statistics are collected on this model, and everything is decomposed,
    planned and cut anew.  So the inputs that a stage whitens by are those that reach a layer
    through the others' truncation.  The recovery of `method` runs once, after the last stage.

    batches: calibration data of every stage.  stages: 1 is `compress`.  correction_batches: data of
    each of the stages − 1 corrections, so that none fits the same samples twice (the paper's code
    draws a fresh sample); None takes `batches`. gradients: into so many groups a correction's
    batches are divided.  layers, validation: as `compress` takes them.

    The report counts against the original dense sizes, as `compress` does.  Cost: `stages` times
    that of statistics, decompositions and allocation, and a pass with gradients a correction.
    Memory: the original weights all along, beside those of the stage.

    Source: Zero Sum SVD (arXiv 2602.02848), multi-stage variant of its code, which closes with a
    pass that factorises the truncated dense weights once more; here the last stage leaves the
    factors.
    Raises ValueError as `compress` and `stats.collect` do, or for a number of correction batches
    that does not fit.
    """
    chosen = method_named(method)
    check_removed(removed)
    check_whole(1, stages=stages, gradients=gradients)
    check_given("compress_in_stages", batches=batches, task_loss=task_loss)
    given = dict(task_loss=task_loss, batches=batches, validation=validation)
    check_arguments(chosen, given)
    samples = [batches] * (stages - 1) if correction_batches is None else list(correction_batches)
    if len(samples) != stages - 1:
        raise ValueError(
            f"correction_batches has {len(samples)} entries: give one list of batches for each of {stages - 1} corrections"
        )
    original = linear_layers(model, layers)
    try:
        for sample in samples:
            _stage(model, replace(chosen, recovery=None), removed, original, given)
            _correct(model, original, sample, task_loss, gradients)
        return _stage(model, chosen, removed, original, given)
    except BaseException:
        for name, module in original.items():
            replace_module(model, name, module)
        raise


def _stage(
    model: nn.Module, method: Method, removed: float, layers: Iterable[str], given: dict
) -> Report:
    """Statistics of the model as it is, and surgery by them."""
    stats = None
    if method.needs:
        stats = collect(
            model, given["batches"], layers, needs=method.needs, task_loss=given["task_loss"]
        )
    return compress(model, method, removed, stats, layers=layers, **given)


@torch.no_grad()
def _correct(
    model: nn.Module,
    original: Mapping[str, nn.Linear],
    batches: Iterable,
    task_loss: Callable,
    groups: int,
) -> None:
    """Every low-rank layer dense again, at W' + ΔW'; the gradients of all are taken at the same
    weights, before any step.
    """
    layers = low_rank_layers(model, original)
    found = product_gradients(model, layers, batches, task_loss, groups)
    for name, layer in layers.items():
        W_k, dense = product(layer), as_linear(layer)
        lost = on_factor_device(original[name].weight).to(W_k.device) - W_k
        dense.weight.copy_(W_k + restoring_step(lost, found.pop(name)))
        replace_module(model, name, dense)
