"""A checkpoint before its weights are read: its configuration, and a model read by blocks."""

import copy
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from safetensors import SafetensorError, safe_open
from torch import nn

from prehab_lib.layers import default_layers, is_conv1d
from prehab_lib.save.checkpoint import BUFFERS, check_tensors, refuse_adapter
from prehab_lib.save.hub import explained
from prehab_lib.save.models import refuse_foreign
from prehab_lib.save.packaged import local
from prehab_lib.save.pretrained import LowRankConfig
from prehab_lib.save.storage import DESCRIPTION
from prehab_lib.statistics.influence import block_of

COMPRESSED = "is compressed already: give the dense model it was made of"


class Streamed:
    """A model whose blocks are on the meta device until `load`; all else is loaded."""

    def __init__(self, model: nn.Module, files: dict[str, Path], dtype: torch.dtype):
        self.model, self.files, self.dtype = model, files, dtype  # files: by parameter name

    def load(self, prefix: str = "") -> None:
        """Read the parameters below `prefix` that are not there yet; raises as `read` does."""
        for name, parameter in list(self.model.get_submodule(prefix).named_parameters(prefix)):
            if parameter.is_meta:
                self.read(name)

    def read(self, name: str) -> None:
        """Raises ValueError for a damaged file, or a tensor of another shape than the model's."""
        path = self.files[name]
        with _undamaged(path), safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name)
        if tensor.shape != self.model.get_parameter(name).shape:
            raise ValueError(f"{name!r} has not the shape of config.json: copy the folder again")
        set_module_tensor_to_device(self.model, name, "cpu", tensor, self.dtype)

    def unload(self, prefix: str) -> None:
        """Forget the parameters below `prefix`; `load` reads them again as they are on the disk."""
        for name, _ in list(self.model.get_submodule(prefix).named_parameters(prefix)):
            set_module_tensor_to_device(self.model, name, "meta")


def open_streamed(folder: str | os.PathLike, dtype: torch.dtype | None = None) -> Streamed:
    """Open a causal language model's checkpoint without its blocks.  dtype: None is its own.

    Raises FileNotFoundError, or ValueError for damage, foreign names, transposed weights (GPT-2).
    """
    folder = Path(local(folder))
    config = config_of(folder)
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    model = _skeleton(config, folder, dtype).eval()
    kind, remedy = type(model).__name__, "load it with models.text_model"
    if any(is_conv1d(module) for module in model.modules()):
        raise ValueError(f"{folder}: weights of {kind} are stored transposed, {remedy}")
    model.tie_weights()
    streamed = Streamed(model, _files(folder), dtype)
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in names if name not in streamed.files]
    stored = {*model.state_dict(), *dict(model.named_buffers())}
    ignored = "|".join([BUFFERS.pattern, *(model._keys_to_ignore_on_load_unexpected or ())])
    unexpected = {name for name in {*streamed.files} - stored if not re.search(ignored, name)}
    check_tensors(folder, missing=missing, unexpected=unexpected)
    blocks = {block_of(layer) for layer in default_layers(model)} - {None}
    inside = tuple(f"{block}." for block in blocks)
    for name in names:
        if not name.startswith(inside):
            streamed.read(name)
    model.tie_weights()
    return streamed


def config_of(source: str | os.PathLike):
    """The transformers configuration of a dense model, wherever `packaged.local` finds it.

    Raises ValueError for a compressed one, or as `local` and `hub.explained` do.
    """
    place = local(source)
    folder = Path(place)
    what, remedy = f"the model {str(source)!r}", "give the folder of a local copy instead"
    refuse_adapter(folder)
    if folder.is_dir():
        what, remedy = f"the configuration in {folder}", "copy the folder again"
        bare = not (folder / "config.json").is_file()
        if bare and (folder / DESCRIPTION).is_file():
            raise ValueError(f"{str(source)!r} {COMPRESSED}")
        if bare:
            raise FileNotFoundError(f"{source} is no model folder: it has no config.json")
    with explained(what, remedy):
        refuse_foreign(transformers.PreTrainedConfig.get_config_dict(place)[0])
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
    refuse_compressed(config, source)
    return config


def _skeleton(config, source: str | os.PathLike, dtype: torch.dtype | None = None) -> nn.Module:
    """A causal language model without weights; ValueError where its configuration makes none."""
    told = explained(f"the configuration of {str(source)!r}", "correct its config.json")
    with told, init_empty_weights(include_buffers=False):  # buffers are small and not stored
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


def causal_config(source: str | os.PathLike):
    """As `config_of`; ValueError too for no causal language model, or one that cannot be built."""
    config = config_of(source)
    kinds = [str(kind) for kind in config.architectures or ()]
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise ValueError(f"{str(source)!r} is a {kinds[0]}: a causal language model is needed")
    _skeleton(copy.deepcopy(config), source)  # which notes its precision there
    return config


def refuse_compressed(config, source: str | os.PathLike) -> None:
    """Raises ValueError for the configuration of a compressed model (one saved merged is dense)."""
    if isinstance(config, LowRankConfig) and config.ranks:
        raise ValueError(f"{str(source)!r} {COMPRESSED}")


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        with _undamaged(index):
            named = dict(json.loads(index.read_text())["weight_map"])
            files = {name: folder / Path(file).name for name, file in named.items()}
    elif single.is_file():
        with _undamaged(single), safe_open(single, framework="pt") as file:
            files = dict.fromkeys(file.keys(), single)
    else:
        raise FileNotFoundError(f"{folder} holds no safetensors: convert the checkpoint first")
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing: the folder is not complete")
    return files


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}): copy the file again") from problem
