"""A compressed model on disk: safetensors, and one JSON that says how to build the skeleton."""

import json
import os
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import torch
from accelerate import init_empty_weights
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from prehab_lib.batches import device_of
from prehab_lib.rivals.quantised import Packing
from prehab_lib.save import card, files, pretrained
from prehab_lib.save.files import BUFFERS, DESCRIPTION, check_target
from prehab_lib.save.hub import one_line
from prehab_lib.save.models import build, nothing_fetched, recipe_of, refuse_foreign
from prehab_lib.save.pretrained import Changes, skeleton_of
from prehab_lib.save.rewrite import fill_dense
from prehab_lib.save.same import check_same


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    tokenizer=None,
    merged: bool = False,
    max_shard_size: int | str = "5GB",
    example=None,
    **about,
) -> Path:
    """Write `folder` with every parameter and buffer (tied ones once) and the recipe.

    tokenizer: of transformers, to save along.  merged: multiply the factors out and write the dense
    model, which needs no prehab_lib to open.  max_shard_size: of a file, in bytes or as "5GB".
    about: more JSON to keep with it, and what the model card says (`card.text`).  example: a batch
    for the comparison, where `same.small_inputs` knows none.

    First the model is rebuilt, from its weights in memory and what would be written, and compared
    in a forward pass; a model saved there before is replaced once the new one is complete.  Raises
    ValueError where `folder` holds any other file or the rebuilt model is not the same function,
    OSError where the disk is full.
    """
    check_target(folder)
    folder, recipe = Path(folder).resolve(), recipe_of(model)
    content = _content(model, recipe, about, merged=False)
    _check(model, content, example, as_transformers=not merged)
    readme = None
    if content.is_compressed:
        packed = {"matrices in 8 bits": len(content.description["packed"]) or None}
        readme = card.text(model, pretrained.opener(recipe, merged), merged, about | packed)
    companions = [tokenizer, getattr(model, "generation_config", None)]
    if merged:
        dense = fill_dense(skeleton_of(recipe), model)
        check_same(model, dense, "the merged model is another function", example, loose=True)
        content = _content(dense, recipe, about, merged=True)
        _check(dense, content, example)
    shards = dict(max_shard_size=max_shard_size, metadata={"format": "pt"})  # transformers asks it
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(folder) as part:
            save_torch_state_dict({n: t.cpu() for n, t in content.inside.items()}, part, **shards)
            if content.description["buffers"] == "beside":
                save_file({n: t.cpu() for n, t in content.beside.items()}, part / BUFFERS)
            for companion in [*companions, content.config]:
                if companion is not None:
                    companion.save_pretrained(part)
            if readme is not None:
                readme.save(part / "README.md")
            listed = content.description | {"files": files.files_in(part)}
            (part / DESCRIPTION).write_text(json.dumps(listed, indent=1))
    except ValueError:  # a file of somebody else's came in the meantime
        raise
    except Exception as problem:  # tokenizers raise no class of their own on a full disk
        what = f"the model could not be written to {folder}: {one_line(problem)}"
        raise OSError(f"{what}; is there space left on the disk?") from problem
    return folder


@dataclass
class _Content:
    """What a folder will hold.  config: of transformers, None where it opens no such model."""

    description: dict
    inside: dict[str, Tensor]
    beside: dict[str, Tensor]
    config: object | None

    @property
    def is_compressed(self) -> bool:
        return bool(self.description["ranks"] or self.description["packed"])


def _content(model: nn.Module, recipe: dict, about: dict, merged: bool) -> _Content:
    """Raises ValueError where the recipe gives other modules, or JSON cannot hold it."""
    inside, tied = pretrained.distinct(model)
    if len({tensor.device for tensor in inside.values()}) > 1:
        inside = {name: tensor.cpu() for name, tensor in inside.items()}
    changes, computed = pretrained.changes_of(skeleton_of(recipe), model, inside)
    config, beside, buffers = None, {}, "inside"
    if pretrained.opener(recipe, merged or not changes):
        if merged:
            computed, changes.buffers = [*computed, *changes.buffers], []
        beside = {name: inside.pop(name) for name in computed}
        buffers = "computed" if merged else "beside" if beside else "inside"
        config = pretrained.configuration(recipe, changes)
        config.dtype = model.dtype
    description = {"format": files.FORMAT, "recipe": recipe, "rewrites": changes.rewrites}
    description |= {"ranks": changes.ranks, "packed": changes.packed, "tied": tied}
    description |= {"rounded": changes.buffers, "buffers": buffers, "about": about}
    try:
        description = json.loads(json.dumps(description))  # as `load` will find it
    except TypeError as problem:
        what = f"{type(model).__name__} or what is told about it holds what JSON cannot"
        raise ValueError(f"{what} ({problem}): give it by name or number") from problem
    return _Content(description, inside, beside, config)


def _check(model: nn.Module, content: _Content, example, as_transformers=True) -> None:
    """Raises ValueError where `load` or transformers would make another function of `content`."""
    given = content.inside if content.description["buffers"] == "computed" else None
    given = content.inside | content.beside if given is None else given
    place, subject = Path(type(model).__name__), f"{type(model).__name__} would not reopen as it is"
    with torch.random.fork_rng(devices=[]):
        try:
            again = _assembled(place, content.description, given)
        except ValueError as problem:
            raise ValueError(f"{subject}: {problem}") from problem
        device = next(iter(given.values())).device
        loose = device != device_of(model)
        check_same(model, again.to(device), subject, example, loose)
        if content.config is not None and as_transformers:
            pretrained.check_reopens(model, content.config, content.inside, example, loose)


def load(folder: str | os.PathLike) -> nn.Module:
    """The model that `save` wrote, in eval mode on the CPU, with bit-equal outputs.

    A compressed model of transformers is an instance of its class in `pretrained`.  Nothing is
    unpickled or fetched, no foreign code runs.  Raises ValueError (`files.MissingFile`, which is a
    FileNotFoundError too, for a missing file) for all that cannot be opened: nothing is
    re-initialised silently.
    """
    folder = Path(folder)
    try:
        description = files.read_description(folder)
        tensors = files.read_weights(folder)
        if description["buffers"] == "beside":
            tensors |= files.read_file(folder / BUFFERS)
        with nothing_fetched():
            model = _assembled(folder, description, tensors)
        pretrained.restore(model, folder)
    except (ValueError, MemoryError):
        raise
    except Exception as problem:  # a loop of links, a name too long, JSON nested too deep, ...
        raise ValueError(
            f"{one_line(folder)} could not be opened ({one_line(problem)})"
        ) from problem
    return model.eval()


def _assembled(folder: Path, description: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """The model of a description and its tensors, which it holds themselves."""
    tied, tensors = description["tied"], dict(tensors)
    try:
        model = _empty(description)
    except Exception as problem:  # whatever a library raises for a configuration like this
        what = f"{folder / DESCRIPTION} describes no model this version can build"
        raise ValueError(f"{what}: {one_line(problem)}") from problem
    expected = pretrained.all_tensors(model)
    if description["buffers"] == "computed":
        expected = {name: expected[name] for name in model.state_dict()}
    for copy, original in tied.items():
        tensors[copy] = tensors.get(original)
    _check_match(folder, expected, tensors)
    for name, tensor in tensors.items():
        if isinstance(expected[name], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        _set(model, name, tensor)
    for copy, original in tied.items():
        _set(model, copy, attrgetter(original)(model))
    for name, packing in description["packed"].items():
        model.get_submodule(name).packing = Packing(**packing)  # with the dtype it had
    return model.eval()


def _empty(description: dict) -> nn.Module:
    """The skeleton of what was saved, its layers swapped."""
    refuse_foreign(description["recipe"])
    recipe, fields = description["recipe"], ("ranks", "rewrites", "packed", "rounded")
    changes = Changes(*map(description.get, fields))
    if changes and pretrained.auto_of(recipe):
        config = pretrained.configuration(recipe, changes)
        with torch.device("meta"):
            return pretrained.class_of(config)(config)
    if description["buffers"] == "computed":  # by transformers, which needs memory for them alone
        with init_empty_weights(include_buffers=False):
            return build(recipe)
    skeleton = skeleton_of(recipe)
    pretrained.reshape(skeleton, changes)
    return skeleton


def _check_match(folder: Path, expected: dict[str, Tensor], tensors: dict[str, Tensor | None]):
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    for kind, names in (("lacks", missing), ("has the unknown tensor", unknown)):
        if names:
            first = f"{min(names)!r} ({len(names)} in all)"
            raise ValueError(f"{folder} {kind} {first}: it does not fit its own description")
    for name, tensor in tensors.items():
        shape = None if tensor is None else tuple(tensor.shape)
        needed = tuple(expected[name].shape)
        if shape != needed:
            raise ValueError(f"{folder}: {name!r} has shape {shape}, the model needs {needed}")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            kinds = f"{tensor.dtype}, the model has {expected[name].dtype}"
            raise ValueError(f"{folder}: {name!r} holds {kinds}")


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)
