"""A checkpoint folder larger than the memory: an empty model, and its weights read block by block
from safetensors.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from prehab_lib.layers import default_layers, is_conv1d
from prehab_lib.save.hub import explained
from prehab_lib.save.tensor_files import INDEX, WEIGHTS, opened, places
from prehab_lib.statistics.influence import block_of


class Streamed:
    """model: everything but the blocks is loaded, the blocks are on the meta device until `load`."""

    def __init__(self, model: nn.Module, files: dict[str, Path], dtype: torch.dtype):
        self.model, self.files, self.dtype = model, files, dtype

    def load(self, prefix: str) -> None:
        """Read the parameters below `prefix` that are not there yet; "": all of the model's."""
        below = f"{prefix}." if prefix else ""
        self._fill(
            [
                name
                for name, p in self.model.named_parameters()
                if name.startswith(below) and p.is_meta
            ]
        )

    def unload(self, prefix: str) -> None:
        """Forget the parameters below `prefix`; `load` reads them again as they are on the disk."""
        for name, parameter in list(self.model.named_parameters()):
            if name.startswith(f"{prefix}."):
                _put(self.model, name, torch.empty_like(parameter, device="meta"))

    def _fill(self, names: list[str]) -> None:
        for name, tensor in _read({name: self.files[name] for name in names}):
            _put(self.model, name, tensor.to(self.dtype) if tensor.is_floating_point() else tensor)


def open_streamed(
    folder: str | os.PathLike,
    auto_class: str = "AutoModelForCausalLM",
    dtype: torch.dtype | None = None,
) -> Streamed:
    """Open a transformers checkpoint without reading its blocks.  dtype: None is the checkpoint's
    own.

    Needs `accelerate`, as peft does.  Raises FileNotFoundError where a file is missing, ValueError
    where one is damaged, names or shapes do not match the model's or the family cannot be streamed
    (GPT-2, whose weights are stored transposed).
    """
    import transformers
    from accelerate import init_empty_weights

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json")
    with explained(f"the configuration in {folder}", remedy="copy the folder again"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    with init_empty_weights(include_buffers=False):  # buffers are small and computed, not stored
        model = getattr(transformers, auto_class).from_config(config, dtype=dtype)
    if any(is_conv1d(module) for module in model.modules()):
        raise ValueError(
            f"{folder}: weights of {type(model).__name__} are stored transposed, load it with models.text_model"
        )
    model.tie_weights()
    files = _files(folder)
    _check_names(folder, model, files)
    blocks = tuple(
        f"{block}." for block in {block_of(name) for name in default_layers(model)} if block
    )
    streamed = Streamed(model.eval(), files, dtype)
    streamed._fill([name for name, _ in model.named_parameters() if not name.startswith(blocks)])
    model.tie_weights()
    return streamed


def _check_names(folder: Path, model: nn.Module, files: dict[str, Path]) -> None:
    missing = [name for name, _ in model.named_parameters() if name not in files]
    if missing:
        raise ValueError(
            f"{folder} has no tensor {missing[0]!r} ({len(missing)} in all are missing): its names are not those of "
            f"{type(model).__name__}, load it with models.text_model and save it again"
        )


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    single = folder / WEIGHTS
    if (folder / INDEX).is_file():
        files = {name: folder / file for name, file in places(folder / INDEX).items()}
    elif single.is_file():
        with opened(single) as file:
            files = dict.fromkeys(file.keys(), single)
    else:
        raise FileNotFoundError(f"{folder} holds no safetensors: convert the checkpoint first")
    if lost := sorted({str(path) for path in files.values() if not path.is_file()}):
        raise FileNotFoundError(f"{lost[0]} is missing: the folder is not complete")
    return files


def _read(files: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(set(files.values())):
        with opened(path) as file:
            for name in [name for name, where in files.items() if where == path]:
                yield name, file.get_tensor(name)


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    old = getattr(module, leaf)
    if old.shape != tensor.shape:
        raise ValueError(
            f"{name!r} has shape {tuple(tensor.shape)} on the disk, the model needs {tuple(old.shape)}"
        )
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
