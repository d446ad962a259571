"""How base models come to be: one training loop, and one cache, so that each is trained once."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from prehab_lib import evaluate
from prehab_lib.batches import loss_of, training_possible
from prehab_lib.progress import progress, say
from prehab_lib.save import models, storage
from prehab_lib.save.packaged import cache_home

SMALL = "small"  # the name of a model that is built and trained here
# The code that decides the weights: this room and the losses.
DECIDING = (*sorted(Path(__file__).parent.glob("*.py")), Path(evaluate.__file__))


def adamw(model: nn.Module, rate: Callable[[int], float], **settings):
    """A schedule of AdamW on every parameter: learning rate lr · rate(step)."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **settings)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def descend(
    model: nn.Module, batches: Iterable, task_loss: Callable, schedule, what: str, clip=math.inf
) -> Iterator[float]:
    """The loss of each batch, before the step that it makes; the caller may stop early.

    clip: largest norm of the gradient.  Raises ValueError for a loss not finite, or under autocast.
    """
    training_possible()
    optimizer, lr = schedule.optimizer, schedule.optimizer.defaults["lr"]
    for step, batch in enumerate(progress(batches, what)):
        loss = loss_of(task_loss, model, batch, trained=True)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at {what} step {step}: lower lr = {lr}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        yield value
    model.zero_grad()


def base_model(
    model: nn.Module, train: Callable, task, device, seed: int, recipe: dict, **key
) -> tuple[nn.Module, str]:
    """The model after `train(model, task, seed=seed, **recipe)`, in eval mode on `device`, and
    "trained"; or "cached", where the cache has it.

    key: what of the task decides the trained weights, as JSON or tensors; all else is added here.
    The cache is below PREHAB_CACHE.  Two processes wait for one training.  A damaged entry is
    trained again; a full disk costs the caching only.
    """
    key |= dict(seed=seed, recipe=recipe, device=str(device), threads=torch.get_num_threads())
    key |= {"weights": list(model.state_dict().values()), "skeleton": models.recipe_of(model)}
    key |= {"code": [file.read_text(encoding="utf-8") for file in DECIDING]}
    key |= {name: version(name) for name in ("torch", "timm", "transformers")}
    text = json.dumps(key, sort_keys=True, default=_hash_of)
    folder = cache_home() / "models" / hashlib.sha256(text.encode()).hexdigest()[:24]
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        with suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        with suppress(OSError, ValueError):
            return storage.load(folder).to(device), "cached"
        train(model.to(device), task, seed=seed, **recipe)
        try:
            storage.save(model.eval(), folder)
        except OSError as problem:
            say(f"not cached: {problem}")
        return model, "trained"
    finally:
        lock.release()


def _hash_of(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy()).hexdigest()
