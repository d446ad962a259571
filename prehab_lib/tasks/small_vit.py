"""The base model of an image task: a small vision transformer trained on the spot, once, or a timm
model as it comes.
"""

import hashlib
import inspect
import sys

import torch
from torch import nn

from prehab_lib.batches import mode
from prehab_lib.evaluate import classification_loss
from prehab_lib.inputs import check_options, check_positive, check_whole
from prehab_lib.progress import progress
from prehab_lib.save import models
from prehab_lib.tasks import cache
from prehab_lib.tasks.images import ImageTask

SMALL = "small"  # the name of the model that is trained here
# Modules whose code decides the trained weights, beside timm and torch.
DECIDING = ("tasks.small_vit", "tasks.images", "tasks.digits", "evaluate", "save.models")


def train(
    model: nn.Module,
    task: ImageTask,
    *,
    seed: int,
    steps: int,
    lr: float,
    weight_decay: float = 0.05,
) -> None:
    """Train every parameter by AdamW with a one-cycle learning rate, whose peak is `lr`, in place.

    Raises ValueError for a bad number.
    """
    check_whole(1, steps=steps)
    check_positive(lr=lr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    with mode(model, training=True):
        for examples in progress(task.train(seed, steps), "base model"):
            loss = classification_loss(model, examples)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.zero_grad(set_to_none=True)


def new_model(
    name: str, *, seed: int = 0, small: dict | None = None, pretrained: bool = True
) -> nn.Module:
    """The network before any training here: `models.small_vit(**small)` from `seed`, or
    `models.image_model(name)`.

    Raises ValueError for an unknown key of `small`, and as `models.image_model` does.
    """
    if name != SMALL:
        return models.image_model(name, pretrained=pretrained)
    check_options("small", small or {}, models.small_vit)
    return models.small_vit(**(small or {}), seed=seed)


def base_model(
    task: ImageTask,
    name: str,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    small: dict | None = None,
    pretrained: bool = True,
    **recipe,
) -> tuple[nn.Module, str]:
    """The model of a task before prehab, in eval mode on `device`, and where it is from: "given",
    "cached" or "trained".

    name: "small" trains `models.small_vit(**small)` by `train(**recipe)`, once: it is cached, keyed
    by the first batch, settings, seed, device and code.  Else a timm name or folder, used as it is.
    Raises as `new_model` and `train` do.
    """
    if name != SMALL:
        return new_model(name, pretrained=pretrained).to(device).eval(), "given"
    pictures, labels = next(iter(task.train(seed, 1)))
    first = hashlib.sha256(pictures.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()[:16]
    key = dict(
        task=task.name, first=first, small=small, recipe=recipe, seed=seed, device=str(device)
    )
    key |= dict(code=[inspect.getsource(sys.modules[f"prehab_lib.{part}"]) for part in DECIDING])
    trained, cached = cache.trained(
        key,
        lambda: new_model(SMALL, seed=seed, small=small).to(device),
        lambda network: train(network, task, seed=seed, **recipe),
    )
    return trained.to(device), "cached" if cached else "trained"
