"""Small base models are trained once for everybody: the user's cache, keyed by everything that went
into them.
"""

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version

import torch
from filelock import FileLock
from torch import nn

from prehab_lib.save import storage
from prehab_lib.tasks.remember import cache_folder


def trained(
    key: dict, make: Callable[[], nn.Module], train: Callable[[nn.Module], None]
) -> tuple[nn.Module, bool]:
    """`make()` after `train(model)`, or the stored result: (model in eval mode, whether it came
    from the cache).

    key: everything that decides the weights, as JSON.  Added are the versions of torch and timm and
    the number of threads, on which sums and so all digits depend.  Two processes that want the same
    model wait for one training.  A damaged entry is trained again; a disk that is full costs the
    caching only.
    """
    here = {"torch": version("torch"), "timm": version("timm"), "threads": torch.get_num_threads()}
    text = json.dumps(key | here, sort_keys=True)
    folder = cache_folder() / "models" / hashlib.sha256(text.encode()).hexdigest()[:24]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
    except OSError as problem:
        print(f"not cached: {problem.strerror}")
        return _train(make, train), False
    try:
        try:
            return storage.load(folder), True
        except (FileNotFoundError, ValueError):
            model = _train(make, train)
        try:
            storage.save(model, folder, key=key)
        except OSError as problem:
            print(f"not cached: {problem}")
        return model, False
    finally:
        lock.release()


def _train(make: Callable[[], nn.Module], train: Callable[[nn.Module], None]) -> nn.Module:
    model = make()
    train(model)
    return model.eval()
