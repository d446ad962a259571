"""A compressed model on disk: safetensors, and one JSON that says how to build the skeleton around
them.

A model of a family in `pretrained.FAMILIES` gets more, so that transformers opens the folder as
well: config.json, the generation settings, the tokenizer where one is given, and a model card.
"""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.rivals.packing import PackedLinear, Packing
from prehab_lib.save import card, pretrained
from prehab_lib.save.files import (
    DESCRIPTION,
    check_target,
    files_in,
    left_at,
    read_file,
    read_weights,
    replacing,
)
from prehab_lib.save.models import build, recipe_of
from prehab_lib.save.pretrained import Changes
from prehab_lib.save.rewrite import fill_dense, rewrites_between

__all__ = ["BUFFERS", "DESCRIPTION", "check_target", "load", "save"]

FORMAT = 2
# What transformers computes and leaves out of checkpoints; kept, so that a model returns to the
# last bit.
BUFFERS = "buffers.safetensors"
FIELDS = {"recipe": dict, "rewrites": list, "ranks": dict, "packed": dict, "tied": dict}
FIELDS |= {"rounded": list, "buffers": str, "files": list}


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    tokenizer=None,
    merged: bool = False,
    max_shard_size: int | str = "5GB",
    **about,
) -> Path:
    """Write `folder` with every parameter and buffer (tied ones once) and the recipe.

    tokenizer: a transformers tokenizer to save along.  merged: multiply the factors out and write
    the dense model, which needs no prehab_lib to open.  max_shard_size: of one file, in bytes or as
    "5GB".  about: more JSON to keep with it, and what the model card says (`card.text`).

    A model saved there before is replaced once the new one is complete.  Raises ValueError where
    `folder` holds any other file or the model cannot be rebuilt from a recipe, OSError with one
    sentence where the disk is full.
    """
    folder = Path(folder).resolve()
    check_target(folder)
    recipe, source = _without_path(recipe_of(model)), model
    if merged:
        model = fill_dense(_skeleton(recipe), source)
    skeleton = _skeleton(recipe)
    computed = dict(skeleton.named_buffers())
    changes = _changes(model, skeleton)
    _check_rebuild(model, skeleton, changes)
    tensors, tied = _tensors(model)

    known = pretrained.family_of(recipe) is not None
    beside: dict[str, Tensor] = {}
    buffers = "inside"
    if known:
        left_out = {name: tensors[name] for name in set(tensors) - set(model.state_dict())}
        if not merged:
            changes.buffers = _rounded(left_out, computed)
        beside = {name: left_out[name] for name in left_out if name not in changes.buffers}
        tensors = {name: tensor for name, tensor in tensors.items() if name not in beside}
        buffers = "computed" if merged else "beside" if beside else "inside"
    description = {"format": FORMAT, "recipe": recipe, "rewrites": changes.rewrites}
    description |= {"ranks": changes.ranks, "packed": changes.packed, "tied": tied}
    description |= {"rounded": changes.buffers, "buffers": buffers, "about": about}
    json.dumps(description)  # what cannot be written is found before anything is

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(folder) as part:
            _write_weights(tensors, part, max_shard_size)
            if buffers == "beside":
                save_file(_on_cpu(beside), part / BUFFERS)
            if known:
                _write_beside(part, model, source, recipe, changes, merged, about)
            if tokenizer is not None:
                tokenizer.save_pretrained(part)
            description["files"] = files_in(part)
            (part / DESCRIPTION).write_text(json.dumps(description, indent=1))
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise OSError(
            f"the model could not be written to {folder}: {problem}; is there space left on the "
            "disk?"
        ) from problem
    return folder


def load(folder: str | os.PathLike) -> nn.Module:
    """The model that `save` wrote, in eval mode on the CPU, with bit-equal outputs.

    A compressed model of a known family is an instance of its class in `pretrained`, so that
    transformers' own `save_pretrained` writes a folder its Auto classes open.  It unpickles nothing
    and runs no foreign code.  Raises FileNotFoundError where a file is missing, ValueError where
    one is damaged or where names or shapes do not match: nothing is ever re-initialised silently.
    """
    folder = Path(folder)
    description = _read_description(folder)
    tensors = read_weights(folder)
    if description["buffers"] == "beside":
        tensors |= read_file(folder / BUFFERS)
    try:
        model = _empty(description)
    except (TypeError, KeyError, AttributeError, RuntimeError, ValueError) as problem:
        raise ValueError(
            f"{folder / DESCRIPTION} describes no model this version can build: {problem}"
        ) from problem
    expected = dict(_all_tensors(model))
    if description["buffers"] == "computed":
        expected = {name: expected[name] for name in model.state_dict()}
    for copy, original in description["tied"].items():
        tensors[copy] = tensors.get(original)
    _check_match(folder, expected, tensors)
    for name, tensor in tensors.items():
        if isinstance(expected[name], nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        _set(model, name, tensor)
    for copy, original in description["tied"].items():
        owner, _, leaf = original.rpartition(".")
        _set(model, copy, getattr(model.get_submodule(owner), leaf))
    for name, packing in description["packed"].items():
        model.get_submodule(name).packing = Packing(**packing)  # with the dtype it had
    pretrained.restore(model, folder)
    return model.eval()


def _without_path(recipe: dict) -> dict:
    """A folder may be given away: it does not tell where its model once lay."""
    if "config" not in recipe:
        return recipe
    config = {key: value for key, value in recipe["config"].items() if key != "_name_or_path"}
    return recipe | {"config": config}


def _skeleton(recipe: dict) -> nn.Module:
    """Fresh from the recipe; without memory for weights where every tensor will be given."""
    with torch.device("meta" if pretrained.family_of(recipe) else "cpu"):
        return build(recipe)


def _empty(description: dict) -> nn.Module:
    """The skeleton of what was saved, its layers swapped."""
    recipe = description["recipe"]
    changes = Changes.of(description)
    if pretrained.family_of(recipe) and changes.any():
        return pretrained.empty(recipe, changes)
    # Buffers that transformers computes need a skeleton with memory.
    computed = description["buffers"] == "computed"
    skeleton = build(recipe) if computed else _skeleton(recipe)
    pretrained.reshape(skeleton, changes)
    return skeleton


def _changes(model: nn.Module, skeleton: nn.Module) -> Changes:
    """What was done to `model` since it was a skeleton fresh from its recipe."""
    changes = Changes(rewrites=rewrites_between(skeleton, model))
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            changes.ranks[name] = module.rank
        elif isinstance(module, PackedLinear):
            changes.packed[name] = module.packing.json()
    return changes


def _rounded(buffers: dict[str, Tensor], computed: dict[str, Tensor]) -> list[str]:
    """Buffers in another precision than transformers computes them in: only the checkpoint can
    bring them back.
    """
    floating = [name for name, buffer in buffers.items() if buffer.is_floating_point()]
    return [name for name in floating if buffers[name].dtype != computed[name].dtype]


def _all_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names, also buffers a state dict leaves out."""
    parameters = model.named_parameters(remove_duplicate=False)
    return [*parameters, *model.named_buffers(remove_duplicate=False)]


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors by their first name, and second name -> first name of tied ones."""
    first_names: dict[int, str] = {}
    tensors, tied = {}, {}
    for name, tensor in _all_tensors(model):
        first = first_names.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        else:
            tied[name] = first
    return tensors, tied


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_weights(tensors: dict[str, Tensor], part: Path, max_shard_size: int | str) -> None:
    # Without the metadata transformers refuses the files.
    how = dict(max_shard_size=max_shard_size, metadata={"format": "pt"})
    save_torch_state_dict(_on_cpu(tensors), part, **how)


def _write_beside(
    part: Path,
    model: nn.Module,
    source: nn.Module,
    recipe: dict,
    changes: Changes,
    merged: bool,
    about: dict,
) -> None:
    """What transformers and the hub read: configuration, generation settings, model card."""
    pretrained.configuration(model, recipe, changes).save_pretrained(part)
    settings = getattr(source, "generation_config", None)
    if settings is not None:
        settings.save_pretrained(part)
    if changes.ranks or changes.packed or merged:
        if changes.packed:
            about = about | {"matrices in 8 bits": len(changes.packed)}
        card.text(source, pretrained.auto_class(recipe), merged, about).save(part / "README.md")


def _check_rebuild(model: nn.Module, skeleton: nn.Module, changes: Changes) -> None:
    """The skeleton must come to print as the model does: same modules, shapes, activations,
    constants.
    """
    pretrained.reshape(skeleton, changes)
    ours, theirs = str(skeleton).splitlines(), str(model).splitlines()
    if ours == theirs:
        return
    pairs = [*zip(ours, theirs, strict=False), (ours[-1], theirs[-1])]
    recipe_gives, model_has = next(
        pair for pair in pairs if pair[0] != pair[1] or pair is pairs[-1]
    )
    raise ValueError(
        f"{type(model).__name__} cannot be rebuilt from its recipe: it has {model_has.strip()!r} "
        f"where the recipe gives {recipe_gives.strip()!r}; set model.prehab_recipe (see "
        "prehab_lib.save.models.build) before saving"
    )


def _read_description(folder: Path) -> dict:
    path = folder / DESCRIPTION
    if not path.is_file():
        left = left_at(folder)
        if left:
            raise FileNotFoundError(
                f"{folder} is not there: a save was killed and left its model in {left}, move it "
                "back"
            )
        raise FileNotFoundError(
            f"{folder} holds no compressed model: {DESCRIPTION} is missing (was it made by "
            "surgery.save?)"
        )
    try:
        description = json.loads(path.read_text())
        wrong = [name for name in FIELDS if not isinstance(description.get(name), FIELDS[name])]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as problem:
        raise ValueError(f"{path} is damaged: {problem}") from problem
    if wrong or description.get("format") != FORMAT:
        raise ValueError(
            f"{path} is of another format than this version writes ({FORMAT}): save the model again"
        )
    return description


def _check_match(
    folder: Path, expected: dict[str, Tensor], tensors: dict[str, Tensor | None]
) -> None:
    missing, unknown = set(expected) - set(tensors), set(tensors) - set(expected)
    for kind, names in (("lacks", missing), ("has the unknown tensor", unknown)):
        if names:
            raise ValueError(
                f"{folder} {kind} {sorted(names)[0]!r} ({len(names)} in all): it does not fit its "
                "own description"
            )
    for name, tensor in tensors.items():
        shape = None if tensor is None else tuple(tensor.shape)
        if shape != tuple(expected[name].shape):
            raise ValueError(
                f"{folder}: {name!r} has shape {shape}, the model needs "
                f"{tuple(expected[name].shape)}"
            )


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)
