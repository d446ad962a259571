"""Named tensors on disk: one safetensors file, or several with an index, laid out as transformers
expects them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

WEIGHTS, INDEX, SHARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-{:05d}-of-{:05d}.safetensors",
)
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def in_bytes(size: int | str) -> int:
    """A size in bytes, or such as "5GB" (decimal, as the hub counts).  Raises ValueError for
    anything else.
    """
    found = (
        re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KB|MB|GB)\s*", size, re.IGNORECASE)
        if isinstance(size, str)
        else None
    )
    value = int(float(found[1]) * UNITS[found[2].upper()]) if found else size
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f'max_shard_size = {size!r}: give a number of bytes, or a size such as "5GB"'
        )
    return value


def write(tensors: Mapping[str, Tensor], folder: Path, max_shard_size: int) -> None:
    """Write `tensors` to an existing folder, in files of at most `max_shard_size` bytes where no
    single tensor is larger.
    """
    groups = _groups(tensors, max_shard_size)
    if len(groups) == 1:
        write_file(tensors, folder / WEIGHTS)
        return
    places = {}
    for number, names in enumerate(groups, start=1):
        file = SHARD.format(number, len(groups))
        write_file({name: tensors[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    total = sum(map(_size, tensors.values()))
    (folder / INDEX).write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1)
    )


def write_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, metadata={"format": "pt"})  # without this transformers refuses the file


def read(folder: Path) -> dict[str, Tensor]:
    """The tensors `write` wrote.  Raises FileNotFoundError or ValueError naming the file that is
    missing or damaged.
    """
    index = folder / INDEX
    if not index.is_file():
        return read_file(folder / WEIGHTS)
    files = sorted(set(places(index).values()))
    return {name: tensor for file in files for name, tensor in read_file(folder / file).items()}


def places(index: Path) -> dict[str, str]:
    """Tensor name -> name of its file, beside the index.  Raises ValueError for an index that is
    damaged or points elsewhere.
    """
    try:
        found = dict(json.loads(index.read_text())["weight_map"])
        outside = [file for file in found.values() if Path(file).name != file]
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(
            f"{index} is damaged ({problem}): save the model again, or copy the file again"
        ) from problem
    if outside:
        raise ValueError(
            f"{index} names {outside[0]!r}, which is no file of its folder: it was changed by hand"
        )
    return found


@contextmanager
def opened(path: Path) -> Iterator:
    """A safetensors file, whose tensors are read one by one.  Raises ValueError naming it where it
    is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except safetensors_error() as problem:
        raise ValueError(f"{path} is damaged ({problem}): copy the file again") from problem


def read_file(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the folder is not complete, save the model again"
        )
    try:
        return load_file(path)
    except (safetensors_error(), ValueError, OSError) as problem:
        raise ValueError(
            f"{path} is damaged ({problem}): save the model again, or copy the file again"
        ) from problem


def safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def _groups(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    groups, size = [[]], 0
    for name, tensor in tensors.items():
        if groups[-1] and size + _size(tensor) > limit:
            groups, size = [*groups, []], 0
        groups[-1].append(name)
        size += _size(tensor)
    return groups


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
