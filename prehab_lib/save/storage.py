"""A compressed model on disk: safetensors, and one JSON that says how to build the skeleton around
them.

A model of a family in `pretrained.FAMILIES` gets more, so that transformers opens the folder as
well: config.json, the generation settings, the tokenizer where one is given, and a model card.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.rivals.packing import PackedLinear, Packing
from prehab_lib.save import card, pretrained, tensor_files
from prehab_lib.save.dense import fill_dense
from prehab_lib.save.folders import DESCRIPTION, check_target, files_in, left_at, replacing
from prehab_lib.save.models import build, recipe_of
from prehab_lib.save.rewrite import rewrites_between
from prehab_lib.save.tensor_files import WEIGHTS

__all__ = ["DESCRIPTION", "FORMAT", "WEIGHTS", "check_target", "load", "save"]

FORMAT = 1
# What transformers computes and keeps out of checkpoints; kept, so that a model returns to the last
# bit.
BUFFERS = "buffers.safetensors"


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    tokenizer=None,
    merged: bool = False,
    max_shard_size: int | str = "5GB",
    **about,
) -> Path:
    """Write `folder` with every parameter and buffer (tied ones once) and the recipe; about: more
    JSON to keep with it.

    tokenizer: a transformers tokenizer to save along.  merged: multiply the factors out and write
    the dense model, which needs no prehab_lib to open.  max_shard_size: of one file, in bytes or as
    "5GB".  about: what the model card tells (see `card.text`): base_model, method, removed,
    achieved, calibration, license; anything else is listed.

    A model saved there before is replaced once the new one is complete; prehab.json lists the files
    that are its own. Raises ValueError where `folder` holds any other, or the model cannot be
    rebuilt from a recipe, OSError with one sentence where the disk is full.
    """
    folder, limit = Path(folder).resolve(), tensor_files.in_bytes(max_shard_size)
    check_target(folder)
    recipe, source = _without_path(recipe_of(model)), model
    if merged:
        model = fill_dense(_skeleton(recipe), source)
    ranks = {
        name: module.rank
        for name, module in model.named_modules()
        if isinstance(module, LowRankLinear)
    }
    packed = {
        name: module.packing.json()
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear)
    }
    skeleton = _skeleton(recipe)
    rewrites = rewrites_between(skeleton, model)
    computed = dict(skeleton.named_buffers())
    _check_rebuild(model, skeleton, rewrites, ranks, packed)
    tensors, tied = _tensors(model)
    description = {
        "format": FORMAT,
        "recipe": recipe,
        "rewrites": rewrites,
        "ranks": ranks,
        "tied": tied,
    }
    description |= {"packed": packed, "about": about}
    beside = {}
    if known := pretrained.family_of(recipe) is not None:
        stored = set(model.state_dict())
        rounded = (
            []
            if merged
            else _rounded({k: v for k, v in tensors.items() if k not in stored}, computed)
        )
        beside = {
            name: tensors.pop(name) for name in list(tensors) if name not in stored.union(rounded)
        }
        description |= {
            "rounded": rounded,
            "buffers": "computed" if merged else "beside" if beside else "inside",
        }
    settings = getattr(source, "generation_config", None)
    json.dumps(description)  # what cannot be written is found before anything is
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(folder) as part:
            tensor_files.write(tensors, part, limit)
            if known:
                pretrained.configuration(
                    model, recipe, ranks, rewrites, rounded, packed
                ).save_pretrained(part)
                if settings is not None:
                    settings.save_pretrained(part)
                if beside and not merged:
                    tensor_files.write_file(beside, part / BUFFERS)
                if ranks or packed or merged:
                    stored = {"matrices in 8 bits": len(packed)} if packed else {}
                    told = card.text(source, pretrained.auto_class(recipe), merged, about | stored)
                    (part / "README.md").write_text(told, encoding="utf-8")
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            (part / DESCRIPTION).write_text(
                json.dumps(description | {"files": files_in(part)}, indent=1)
            )
    except (OSError, RuntimeError, tensor_files.safetensors_error()) as problem:
        raise OSError(
            f"the model could not be written to {folder}: {problem}; is there space left on the disk?"
        ) from problem
    return folder


def load(folder: str | os.PathLike) -> nn.Module:
    """The model that `save` wrote, in eval mode on the CPU, with bit-equal outputs.  Unpickles
    nothing, runs no foreign code.

    A compressed model of a known family is an instance of its class in `pretrained`, so that
    transformers' own `save_pretrained` writes a folder its Auto classes open.  Raises
    FileNotFoundError where a file is missing, ValueError where one is damaged or where names or
    shapes do not match: nothing is ever re-initialised silently.
    """
    folder = Path(folder)
    description = _read_description(folder)
    tensors = tensor_files.read(folder)
    if description.get("buffers") == "beside":
        tensors |= tensor_files.read_file(folder / BUFFERS)
    try:
        model = _empty(description)
    except (TypeError, KeyError, AttributeError, RuntimeError, ValueError) as problem:
        raise ValueError(
            f"{folder / DESCRIPTION} describes no model this version can build: {problem}"
        ) from problem
    expected = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    if description.get("buffers") == "computed":
        expected = {name: expected[name] for name in model.state_dict()}
    for copy, original in description["tied"].items():
        tensors[copy] = tensors.get(original)
    _check_match(folder, expected, tensors)
    for name, tensor in tensors.items():
        _assign(model, name, tensor, is_parameter=isinstance(expected[name], nn.Parameter))
    for copy, original in description["tied"].items():
        parent, _, leaf = copy.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _get(model, original))
    for name, packing in description.get("packed", {}).items():
        model.get_submodule(name).packing = Packing(**packing)  # with the dtype it had
    pretrained.restore(model, folder)
    return model.eval()


def _without_path(recipe: dict) -> dict:
    """A folder may be given away: it does not tell where its model once lay."""
    config = {
        key: value for key, value in recipe.get("config", {}).items() if key != "_name_or_path"
    }
    return recipe | ({"config": config} if config else {})


def _skeleton(recipe: dict) -> nn.Module:
    """Fresh from the recipe; without memory for weights where every tensor will be given."""
    with torch.device("meta" if pretrained.family_of(recipe) else "cpu"):
        return build(recipe)


def _empty(description: dict) -> nn.Module:
    """The skeleton of what was saved, its layers swapped."""
    recipe, ranks, rewrites = (
        description["recipe"],
        description["ranks"],
        description.get("rewrites", []),
    )
    rounded, packed = description.get("rounded", []), description.get("packed", {})
    if pretrained.family_of(recipe) and (ranks or rewrites or rounded or packed):
        return pretrained.empty(recipe, ranks, rewrites, rounded, packed)
    skeleton = build(recipe) if description.get("buffers") == "computed" else _skeleton(recipe)
    pretrained.reshape(skeleton, rewrites, ranks, packed)
    return skeleton


def _rounded(buffers: dict[str, Tensor], computed: dict[str, Tensor]) -> list[str]:
    """Buffers in another precision than transformers computes them in: only the checkpoint can
    bring them back.
    """
    return [n for n, b in buffers.items() if b.is_floating_point() and b.dtype != computed[n].dtype]


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All parameters and buffers by name (also buffers that a state dict leaves out), and the
    second names of tied ones.
    """
    seen: dict[int, str] = {}
    tensors, tied = {}, {}
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        first = seen.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        else:
            tied[name] = first
    return tensors, tied


def _check_rebuild(
    model: nn.Module,
    skeleton: nn.Module,
    rewrites: list[str],
    ranks: dict[str, int],
    packed: dict[str, dict],
) -> None:
    """The skeleton must come to print as the model does: same modules, shapes, activations,
    constants.
    """
    pretrained.reshape(skeleton, rewrites, ranks, packed)
    if str(skeleton) != str(model):
        ours, theirs = str(skeleton).splitlines(), str(model).splitlines()
        first = next(
            (pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]),
            (ours[-1], theirs[-1]),
        )
        raise ValueError(
            f"{type(model).__name__} cannot be rebuilt from its recipe: it has {first[1].strip()!r} where the recipe gives "
            f"{first[0].strip()!r}; set model.prehab_recipe (see prehab_lib.save.models.build) before saving"
        )


def _read_description(folder: Path) -> dict:
    path = folder / DESCRIPTION
    if not path.is_file():
        if left := left_at(folder):
            raise FileNotFoundError(
                f"{folder} is not there: a save was killed and left its model in {left}, move it back"
            )
        raise FileNotFoundError(
            f"{folder} holds no compressed model: {DESCRIPTION} is missing (was it made by surgery.save?)"
        )
    try:
        description = json.loads(path.read_text())
        missing = {"format", "recipe", "ranks", "tied"} - set(description)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as problem:
        raise ValueError(f"{path} is damaged: {problem}") from problem
    shapes = {"recipe": dict, "rewrites": list, "ranks": dict, "packed": dict, "tied": dict}
    missing |= {
        name for name, kind in shapes.items() if not isinstance(description.get(name, kind()), kind)
    }
    if missing or description["format"] != FORMAT:
        raise ValueError(
            f"{path} is of another format than this version writes ({FORMAT}): save the model again"
        )
    return description


def _check_match(
    folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor | None]
) -> None:
    for kind, names in (
        ("lacks", set(expected) - set(found)),
        ("has the unknown tensor", set(found) - set(expected)),
    ):
        if names:
            raise ValueError(
                f"{folder} {kind} {sorted(names)[0]!r} ({len(names)} in all): it does not fit its own description"
            )
    for name, tensor in found.items():
        if tensor is None or tensor.shape != expected[name].shape:
            shape = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"{folder}: {name!r} has shape {shape}, the model needs {tuple(expected[name].shape)}"
            )


def _assign(model: nn.Module, name: str, tensor: Tensor, is_parameter: bool) -> None:
    parent, _, leaf = name.rpartition(".")
    value = (
        nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if is_parameter else tensor
    )
    setattr(model.get_submodule(parent), leaf, value)


def _get(model: nn.Module, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)
