"""How base models come to be: one training loop, and one cache, so that each is trained once.

The cache is the folder `PREHAB_CACHE`, else ~/.cache/prehab_lib.  It also keeps texts that take
seconds to read out of source files.
"""

import hashlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from filelock import FileLock
from torch import Tensor, nn

from prehab_lib import evaluate
from prehab_lib.progress import progress
from prehab_lib.save import models, storage
from prehab_lib.tasks import drawn

SMALL = "small"  # the name of a model that is built and trained here
DECIDING = (sys.modules[__name__], drawn, evaluate)  # their code decides weights, for every task


def descend(
    model: nn.Module,
    batches: Iterable,
    task_loss: Callable,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    what: str,
    clip: float = math.inf,
) -> Iterator[float]:
    """The loss of each batch, before the step that it makes; the caller may stop early.

    what: names the work in messages.  clip: largest norm of the gradient.  Raises ValueError for a
    loss that is no longer finite.
    """
    for step, batch in enumerate(progress(batches, what)):
        loss = task_loss(model, batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            lr = optimizer.defaults["lr"]
            raise ValueError(f"the loss is {value} at {what} step {step}: lower lr = {lr}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        yield value
    model.zero_grad()


class Best:
    """Keeps a copy of some parameters as they were at the lowest value offered so far.

    value: that value, infinite before the first.  since: offers in a row that were not lower.
    Memory: one copy.
    """

    def __init__(self, parameters: Iterable[Tensor]):
        self.parameters = list(parameters)
        self.value, self.since = float("inf"), 0
        self.kept: list[Tensor] | None = None

    def offer(self, value: float) -> bool:
        """Keep the parameters as they are if `value` is lower than every one before; whether it
        was.
        """
        if value < self.value:
            self.value, self.since = value, 0
            self.kept = [parameter.detach().clone() for parameter in self.parameters]
            return True
        self.since += 1
        return False

    @torch.no_grad()
    def restore(self) -> None:
        """Put the kept values back; nothing where none was ever kept."""
        for parameter, value in zip(self.parameters, self.kept or [], strict=False):
            parameter.copy_(value)


def base_model(
    model: nn.Module,
    train: Callable[[nn.Module], object],
    device: str | torch.device,
    code: Iterable[ModuleType],
    **key,
) -> tuple[nn.Module, str]:
    """The model after `train(model)`, in eval mode on `device`, and "trained"; or "cached", where
    the cache has it.

    key: what decides the trained weights, as JSON or tensors.  Added are the model itself, the
    device, the source of the modules `code`, library versions, and the number of threads, on which
    all digits depend.  Two processes that want the same model wait for one training.  A
    damaged entry is trained again; a full disk costs the caching only.
    """
    key |= {"weights": list(model.state_dict().values()), "skeleton": models.recipe_of(model)}
    key |= {"code": [inspect.getsource(module) for module in (*DECIDING, *code)]}
    key |= {name: version(name) for name in ("torch", "timm", "transformers")}
    key |= {"threads": torch.get_num_threads(), "device": str(device)}
    folder = cache_folder() / "models" / _digest(key)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        with suppress(OSError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        with suppress(OSError, ValueError):
            return storage.load(folder).to(device), "cached"
        train(model.to(device))
        try:
            storage.save(model.eval(), folder)
        except OSError as problem:
            print(f"not cached: {problem}")
        return model, "trained"
    finally:
        lock.release()


def cache_folder() -> Path:
    return Path(os.environ.get("PREHAB_CACHE") or Path.home() / ".cache" / "prehab_lib")


def remembered(name: str, key, make: Callable[[], list]) -> list:
    """`make()`, or what it gave when it was last called with this key, as JSON has it: a tuple
    returns as a list.

    A damaged entry is made again; a disk that is full or read-only costs the keeping only.
    """
    file = cache_folder() / "texts" / f"{name}-{_digest(key)}.json"
    with suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    value, part = make(), file.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(value), encoding="utf-8")
        part.replace(file)
    return value


def _digest(key) -> str:
    """Of JSON that may hold tensors."""

    def of_tensor(tensor: Tensor) -> str:
        flat = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        return hashlib.sha256(flat.numpy()).hexdigest()

    text = json.dumps(key, sort_keys=True, default=of_tensor)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
