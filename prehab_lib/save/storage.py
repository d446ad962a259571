"""A compressed model on disk: safetensors, and one JSON that says how to build the skeleton."""

import json
import os
from operator import attrgetter
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from prehab_lib.batches import device_of
from prehab_lib.rivals.quantised import Packing
from prehab_lib.save import card, files, pretrained
from prehab_lib.save.files import DESCRIPTION, check_target
from prehab_lib.save.hub import one_line
from prehab_lib.save.models import build, nothing_fetched, recipe_of, refuse_foreign
from prehab_lib.save.pretrained import Changes
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
    description, tensors = _checked(model, recipe, about, example)
    companions = [tokenizer, getattr(model, "generation_config", None)]
    if description["ranks"] or description["packed"]:
        details = about | {"matrices in 8 bits": len(description["packed"]) or None}
        companions.append(card.text(model, _opener(recipe, merged), merged, details))
    if merged:
        dense = fill_dense(build(recipe), model)
        check_same(model, dense, example, loose=True)
        description, tensors = _checked(dense, recipe, about, example, merged)
    if recipe["library"] == "transformers":
        config = pretrained.configuration(recipe, _changes(description))
        config.dtype = model.dtype
        companions.append(config)
    shards = dict(max_shard_size=max_shard_size, metadata={"format": "pt"})  # transformers asks it
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(folder) as part:
            save_torch_state_dict({n: t.cpu() for n, t in tensors.items()}, part, **shards)
            for companion in filter(None, companions):
                is_card = isinstance(companion, card.ModelCard)
                companion.save(part / "README.md") if is_card else companion.save_pretrained(part)
            listed = description | {"files": files.files_in(part)}
            (part / DESCRIPTION).write_text(json.dumps(listed, indent=1))
    except ValueError:  # a file of somebody else's came in the meantime
        raise
    except Exception as problem:  # tokenizers raise no class of their own on a full disk
        what = f"the model could not be written to {folder}: {one_line(problem)}"
        raise OSError(f"{what}; is there space left on the disk?") from problem
    return folder


def load(folder: str | os.PathLike) -> nn.Module:
    """The model that `save` wrote, in eval mode on the CPU.

    A compressed model of transformers is an instance of its class in `pretrained`.  Nothing is
    unpickled or fetched, no foreign code runs.  Raises ValueError (`files.MissingFile`, which is a
    FileNotFoundError too, for a missing file) for all that cannot be opened: nothing is
    re-initialised silently.
    """
    folder = Path(folder)
    try:
        description, tensors = files.read_description(folder), files.read_weights(folder)
        with nothing_fetched():
            model = _rebuilt(description, tensors, folder)
        pretrained.restore(model, folder)
    except (ValueError, MemoryError):
        raise
    except Exception as problem:  # a loop of links, a name too long, JSON nested too deep, ...
        raise ValueError(
            f"{one_line(folder)} could not be opened ({one_line(problem)})"
        ) from problem
    return model.eval()


def _opener(recipe: dict, merged: bool) -> str | None:
    """The class of transformers that opens a folder, None for `surgery.load` alone."""
    own = recipe["class"] if merged and recipe["library"] == "transformers" else None
    return pretrained.auto_of(recipe) or own


def _checked(
    model: nn.Module, recipe: dict, about: dict, example=None, merged: bool = False
) -> tuple[dict, dict[str, Tensor]]:
    """What `load` will find; ValueError where it would make another function of it."""
    changes, tensors, tied = pretrained.content(model, recipe, merged)
    description = {"format": files.FORMAT, "recipe": recipe, "rewrites": changes.rewrites}
    description |= {"ranks": changes.ranks, "packed": changes.packed, "tied": tied}
    description |= {"rounded": changes.buffers, "about": about}
    try:
        description = json.loads(json.dumps(description))
    except TypeError as problem:
        what = f"{type(model).__name__} or what is told about it holds what JSON cannot"
        raise ValueError(f"{what} ({problem}): give it by name or number") from problem
    try:
        again = _rebuilt(description, tensors, Path(type(model).__name__))
    except ValueError as problem:
        raise ValueError(f"the model would not reopen as it is: {problem}") from problem
    device = next(iter(tensors.values())).device
    check_same(model, again.to(device), example, loose=device != device_of(model))
    return description, tensors


def _changes(description: dict) -> Changes:
    return Changes(*map(description.get, ("ranks", "rewrites", "packed", "rounded")))


def _rebuilt(description: dict, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """The model of a description and its tensors, which it holds themselves."""
    recipe, tied, tensors = description["recipe"], description["tied"], dict(tensors)
    try:
        refuse_foreign(recipe)
        if recipe["library"] == "transformers":
            config = pretrained.configuration(recipe, _changes(description))
            return pretrained.reopened(config, tensors)
        model = build(recipe)
        pretrained.reshape(model, _changes(description))
    except Exception as problem:  # whatever a library raises for a configuration like this
        what = f"{folder / DESCRIPTION} describes no model this version can build of its files"
        raise ValueError(f"{what}: {one_line(problem)}") from problem
    for copy, original in tied.items():
        tensors[copy] = tensors.get(original)
    _check_match(folder, pretrained.all_tensors(model), tensors)
    for name, tensor in tensors.items():
        is_parameter = name in dict(model.named_parameters())
        _set(model, name, nn.Parameter(tensor) if is_parameter else tensor)
    for copy, original in tied.items():
        _set(model, copy, attrgetter(original)(model))
    for name, packing in description["packed"].items():
        model.get_submodule(name).packing = Packing(**packing)  # with the dtype it had
    return model


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
