"""Scores and task losses: what training lowers and tables print."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from prehab_lib.batches import IGNORED, device_of, forward, mean_over_samples, mode, move
from prehab_lib.progress import progress


def logits_and_labels(model: nn.Module, batch) -> tuple[Tensor, Tensor]:
    """(B, classes) and (B,), of an (images, labels) tuple, or of a dict without its "labels".

    Raises ValueError where the batch has no labels, an answer no logits, or a label no class.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1]
    if not isinstance(labels, Tensor):
        raise ValueError('a batch has no tensor "labels" to score it by')
    if isinstance(batch, Mapping):
        batch = {name: value for name, value in batch.items() if name != "labels"}
    out = forward(model, batch)
    logits = getattr(out, "logits", out)
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise ValueError(f"forward must return logits or an object with .logits, not a {kind}")
    each_token = labels.shape == logits.shape[:-1]  # else classes stand on the second axis
    classes = logits.shape[-1 if each_token else min(1, logits.ndim - 1)]
    whole = not labels.is_floating_point() and labels.ndim < logits.ndim
    if whole and bool(((labels != IGNORED) & ((labels < 0) | (labels >= classes))).any()):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()} of {classes} classes")
    return logits, labels


@mean_over_samples
def classification_loss(model: nn.Module, batch) -> Tensor:
    """Mean cross-entropy in nats, in float32 or better: the task loss of Tables II and V."""
    logits, labels = logits_and_labels(model, move(batch, device_of(model)))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return nn.functional.cross_entropy(logits, labels)


@torch.no_grad()
def each_answer(model: nn.Module, batches: Iterable) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, classes) and labels (B,) of every batch, in eval mode.

    Raises ValueError where there is no batch or a logit is not finite: nothing is skipped silently.
    """
    empty = True
    with mode(model, training=False):
        for batch in progress(batches, "evaluation"):
            empty = False
            logits, labels = logits_and_labels(model, move(batch, device_of(model)))
            if not torch.isfinite(logits).all():
                problem = "the model's logits are NaN or infinite"
                raise ValueError(f"{problem}: the compressed weights do not fit its precision")
            yield logits, labels
    if empty:
        raise ValueError("there is nothing to evaluate: the batches are empty")


def accuracy(model: nn.Module, batches: Iterable) -> float:
    """Top-1 accuracy in per cent over all batches, in eval mode.  Raises as `each_answer` does."""
    right, total = 0, 0
    for logits, labels in each_answer(model, batches):
        if labels.shape != logits.shape[:-1]:
            shapes = f"{tuple(labels.shape)}, and the logits {tuple(logits.shape)}"
            raise ValueError(f"accuracy takes one label an answer: the labels have shape {shapes}")
        scored = labels != IGNORED
        right += int(((logits.argmax(-1) == labels) & scored).sum())
        total += int(scored.sum())
    if not total:
        raise ValueError("there is nothing to evaluate: all labels are ignored")
    return 100.0 * right / total
