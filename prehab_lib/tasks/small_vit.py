"""The base model of an image task: a small vision transformer trained here, or a timm model."""

import torch
from torch import nn

from prehab_lib.batches import mode
from prehab_lib.evaluate import classification_loss
from prehab_lib.inputs import check_options, check_positive, check_whole
from prehab_lib.save import models
from prehab_lib.save.rewrite import split_qkv as split_qkv  # offered here with the models it splits
from prehab_lib.tasks import training
from prehab_lib.tasks.images import ImageTask


def train(model: nn.Module, task: ImageTask, *, seed: int, steps: int, lr: float) -> None:
    """Train every parameter, in place, by AdamW on a one-cycle learning rate whose peak is `lr`."""
    check_whole(1, steps=steps)
    check_positive(lr=lr)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    batches = task.train(seed, steps)
    with mode(model, training=True):
        list(training.descend(model, batches, classification_loss, schedule, "base model"))


def new_model(name: str, *, seed: int = 0, small=None, pretrained=True) -> nn.Module:
    """`models.small_vit(**small)` from `seed` for "small", else `models.image_model(name)`."""
    if name != training.SMALL:
        return models.image_model(name, pretrained=pretrained)
    check_options("small", small or {}, models.small_vit)
    return models.small_vit(**small or {}, seed=seed)


def base_model(
    task: ImageTask, name: str, *, seed: int, device="cpu", small=None, pretrained=True, **recipe
) -> tuple[nn.Module, str]:
    """The model of a task before prehab, as `training.base_model` gives it; or "given".

    name: "small" trains a `new_model` by `train(**recipe)`; a timm name or folder is used as it is.
    """
    model = new_model(name, seed=seed, small=small, pretrained=pretrained)
    if name != training.SMALL:
        return model.to(device).eval(), "given"
    fed = dict(data=task.name, images=task.fed, first_batch=next(iter(task.train(seed, 1))))
    return training.base_model(model, train, task, device, seed, recipe, **fed)
