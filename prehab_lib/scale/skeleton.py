"""A checkpoint before its weights are read: its configuration, and an empty model whose blocks are
read from safetensors one by one.
"""

import json
import os
from pathlib import Path

import torch
from torch import nn

from prehab_lib.layers import default_layers, is_conv1d
from prehab_lib.save.hub import explained
from prehab_lib.save.pretrained import LowRankConfig
from prehab_lib.save.storage import DESCRIPTION
from prehab_lib.statistics.influence import block_of

COMPRESSED = "{!r} is compressed already: give the dense model it was made of"


class Streamed:
    """model: everything but the blocks is loaded, the blocks are on the meta device until `load`.

    files: parameter -> the safetensors file that holds it.
    """

    def __init__(self, model: nn.Module, files: dict[str, Path], dtype: torch.dtype):
        self.model, self.files, self.dtype = model, files, dtype

    def load(self, prefix: str = "") -> None:
        """Read the parameters below `prefix` that are not there yet; "": all of the model's."""
        self.read([name for name, p in self._below(prefix) if p.is_meta])

    def unload(self, prefix: str) -> None:
        """Forget the parameters below `prefix`; `load` reads them again as they are on the disk."""
        from accelerate.utils import set_module_tensor_to_device

        for name, _ in self._below(prefix):
            set_module_tensor_to_device(self.model, name, "meta")

    def read(self, names: list[str]) -> None:
        """Raises ValueError for a damaged file, or a tensor of another shape than the model's."""
        from accelerate.utils import set_module_tensor_to_device

        for name in names:
            with _opened(self.files[name]) as file:
                tensor = file.get_tensor(name)
            if tensor.shape != self.model.get_parameter(name).shape:
                raise ValueError(
                    f"{name!r} has another shape on the disk than by config.json: take both from "
                    "the same checkpoint"
                )
            set_module_tensor_to_device(self.model, name, "cpu", tensor, self.dtype)

    def _below(self, prefix: str) -> list[tuple[str, nn.Parameter]]:
        start = f"{prefix}." if prefix else ""
        return [named for named in self.model.named_parameters() if named[0].startswith(start)]


def open_streamed(
    folder: str | os.PathLike,
    auto_class: str = "AutoModelForCausalLM",
    dtype: torch.dtype | None = None,
) -> Streamed:
    """Open a transformers checkpoint without reading its blocks.  dtype: None is the checkpoint's
    own.

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged, names do not
    match the model's or the family cannot be streamed (GPT-2, whose weights are transposed).
    """
    import transformers
    from accelerate import init_empty_weights

    folder = Path(folder)
    config = config_of(folder)
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    with init_empty_weights(include_buffers=False):  # buffers are small and computed, not stored
        model = getattr(transformers, auto_class).from_config(config, dtype=dtype).eval()
    kind = type(model).__name__
    if any(is_conv1d(module) for module in model.modules()):
        raise ValueError(
            f"{folder}: weights of {kind} are stored transposed, load it with models.text_model"
        )
    model.tie_weights()
    files = _files(folder)
    names = [name for name, _ in model.named_parameters()]
    missing = [name for name in names if name not in files]
    if missing:
        raise ValueError(
            f"{folder} has no tensor {missing[0]!r} ({len(missing)} in all are missing): its names "
            f"are not those of {kind}, load it with models.text_model and save it again"
        )
    blocks = {block_of(layer) for layer in default_layers(model)} - {None}
    inside = tuple(f"{block}." for block in blocks)
    streamed = Streamed(model, files, dtype)
    streamed.read([name for name in names if not name.startswith(inside)])
    model.tie_weights()
    return streamed


def config_of(source: str | os.PathLike):
    """The transformers configuration of a dense model: of a folder, or a hub name.

    Raises ValueError for a compressed model, FileNotFoundError for a folder that is none, else as
    `hub.explained` does.
    """
    from transformers import AutoConfig

    folder = Path(source)
    if str(source).startswith((".", "/", "~")) and not folder.is_dir():
        raise FileNotFoundError(f"model = {str(source)!r} is no folder: check the path")
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / DESCRIPTION).is_file():
            raise ValueError(COMPRESSED.format(str(source)))
        raise FileNotFoundError(f"{source} is no model folder: it has no config.json")
    what, remedy = f"the model {str(source)!r}", "give the folder of a local copy instead"
    if folder.is_dir():
        what, remedy = f"the configuration in {folder}", "copy the folder again"
    with explained(what, remedy):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    refuse_compressed(config, str(source))
    return config


def causal_config(source: str | os.PathLike):
    """As `config_of`; raises ValueError too where the model is no causal language model."""
    config = config_of(source)
    kinds = config.architectures or []
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise ValueError(f"{str(source)!r} is a {kinds[0]}: a causal language model is needed")
    return config


def refuse_compressed(config, source: str) -> None:
    """Raises ValueError for the configuration of a compressed model (one saved merged is dense)."""
    if isinstance(config, LowRankConfig) and config.ranks:
        raise ValueError(COMPRESSED.format(source))


def _files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that holds it."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            files = dict(json.loads(index.read_text())["weight_map"])
            outside = [file for file in files.values() if Path(file).name != file]
        except (ValueError, KeyError, TypeError) as problem:
            raise ValueError(f"{index} is damaged ({problem}): copy the file again") from problem
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}, which is no file of its folder")
        files = {name: folder / file for name, file in files.items()}
    elif single.is_file():
        with _opened(single) as file:
            files = dict.fromkeys(file.keys(), single)
    else:
        raise FileNotFoundError(f"{folder} holds no safetensors: convert the checkpoint first")
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the folder is not complete")
    return files


def _opened(path: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as problem:
        raise ValueError(f"{path} is damaged ({problem}): copy the file again") from problem
