"""A compressed model on disk: safetensors, and one JSON that says how to build the skeleton."""

import json
import os
from itertools import zip_longest
from operator import attrgetter
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import is_conv1d
from prehab_lib.rivals.quantised import PackedLinear, Packing
from prehab_lib.save import card, files, pretrained
from prehab_lib.save.files import BUFFERS, DESCRIPTION, check_target
from prehab_lib.save.models import build, recipe_of
from prehab_lib.save.pretrained import Changes
from prehab_lib.save.rewrite import SplitQKV, fill_dense


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

    tokenizer: of transformers, to save along.  merged: multiply the factors out and write the dense
    model, which needs no prehab_lib to open.  max_shard_size: of a file, in bytes or as "5GB".
    about: more JSON to keep with it, and what the model card says (`card.text`).

    A model saved there before is replaced once the new one is complete.  Raises ValueError where
    `folder` holds any other file or the model cannot be rebuilt, OSError where the disk is full.
    """
    folder = Path(folder).resolve()
    check_target(folder)
    recipe = recipe_of(model)
    written = fill_dense(_skeleton(recipe), model) if merged else model
    skeleton = _skeleton(recipe)
    changes = _changes(skeleton, written)
    pretrained.reshape(skeleton, changes)
    _check_same(skeleton, written)

    tensors, tied = _tensors(written)
    buffers, beside = "inside", {}
    companions, readme = [tokenizer], None
    family = pretrained.family_of(recipe)
    if family:
        usual, ours, computed = skeleton.state_dict(), written.state_dict(), _all_tensors(skeleton)
        left_out = [name for name in tensors if name not in usual]
        if not merged:  # these are not as computed: only the checkpoint brings them back
            rounded = [n for n in left_out if tensors[n].dtype != computed[n].dtype]
            changes.buffers = [n for n in left_out if n in rounded or n in ours]
        beside = {name: tensors.pop(name) for name in left_out if name not in changes.buffers}
        if merged:
            buffers = "computed"
        elif beside:
            buffers = "beside"
        config = pretrained.configuration(recipe, changes)
        config.dtype = model.dtype
        companions += [config, getattr(model, "generation_config", None)]
        if merged or changes.ranks or changes.packed:
            details = about | {"matrices in 8 bits": len(changes.packed) or None}
            auto = pretrained.AUTO[pretrained.FAMILIES[family][1:].index(recipe["class"])]
            readme = card.text(model, auto, merged, details)
    description = {"format": files.FORMAT, "recipe": recipe, "rewrites": changes.rewrites}
    description |= {"ranks": changes.ranks, "packed": changes.packed, "tied": tied}
    description |= {"rounded": changes.buffers, "buffers": buffers, "about": about}
    json.dumps(description)  # what cannot be written is found before anything is

    folder.parent.mkdir(parents=True, exist_ok=True)
    shards = dict(max_shard_size=max_shard_size, metadata={"format": "pt"})  # transformers asks it
    try:
        with files.replacing(folder) as part:
            save_torch_state_dict(tensors, part, **shards)
            if buffers == "beside":
                save_file(beside, part / BUFFERS)
            for companion in companions:
                if companion is not None:
                    companion.save_pretrained(part)
            if readme is not None:
                readme.save(part / "README.md")
            description["files"] = files.files_in(part)
            (part / DESCRIPTION).write_text(json.dumps(description, indent=1))
    except (OSError, RuntimeError, SafetensorError) as problem:
        what = f"the model could not be written to {folder}: {problem}"
        raise OSError(f"{what}; is there space left on the disk?") from problem
    return folder


def load(folder: str | os.PathLike) -> nn.Module:
    """The model that `save` wrote, in eval mode on the CPU, with bit-equal outputs.

    A compressed model of a known family is an instance of its class in `pretrained`.  Nothing is
    unpickled, no foreign code runs.  Raises FileNotFoundError where a file is missing, ValueError
    where one is damaged or names or shapes do not match: nothing is re-initialised silently.
    """
    folder = Path(folder)
    description = files.read_description(folder)
    tied, buffers = description["tied"], description["buffers"]
    tensors = files.read_weights(folder)
    if buffers == "beside":
        tensors |= files.read_file(folder / BUFFERS)
    try:
        model = _empty(description)
    except (TypeError, KeyError, AttributeError, RuntimeError, ValueError) as problem:
        what = f"{folder / DESCRIPTION} describes no model this version can build"
        raise ValueError(f"{what}: {problem}") from problem
    expected = _all_tensors(model)
    if buffers == "computed":
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
    pretrained.restore(model, folder)
    return model.eval()


def _skeleton(recipe: dict) -> nn.Module:
    """Fresh from the recipe; without memory for weights where every tensor will be given."""
    with torch.device("meta" if pretrained.family_of(recipe) else "cpu"):
        return build(recipe)


def _empty(description: dict) -> nn.Module:
    """The skeleton of what was saved, its layers swapped."""
    recipe, fields = description["recipe"], ("ranks", "rewrites", "packed", "rounded")
    changes = Changes(*map(description.get, fields))
    family = pretrained.family_of(recipe)
    if family and changes:
        kind = pretrained.low_rank_class(family, recipe["class"])
        with torch.device("meta"):
            return kind(pretrained.configuration(recipe, changes))
    # Buffers that transformers computes need a skeleton with memory.
    skeleton = build(recipe) if description["buffers"] == "computed" else _skeleton(recipe)
    pretrained.reshape(skeleton, changes)
    return skeleton


def _changes(skeleton: nn.Module, model: nn.Module) -> Changes:
    """What was done to `model` since it was a skeleton fresh from its recipe."""
    changes = Changes()
    if any(map(is_conv1d, skeleton.modules())) and not any(map(is_conv1d, model.modules())):
        changes.rewrites.append("to_linear")
    if any(isinstance(module, SplitQKV) for module in model.modules()):
        changes.rewrites.append("split_qkv")
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            changes.ranks[name] = module.rank
        elif isinstance(module, PackedLinear):
            changes.packed[name] = module.packing.json()
    return changes


def _check_same(skeleton: nn.Module, model: nn.Module) -> None:
    """Both print the same modules, shapes and constants, and have the same names of tensors."""
    ours = [*str(skeleton).splitlines(), *sorted(_all_tensors(skeleton))]
    theirs = [*str(model).splitlines(), *sorted(_all_tensors(model))]
    for recipe_gives, model_has in zip_longest(ours, theirs, fillvalue="nothing"):
        if recipe_gives != model_has:
            where = f"has {model_has.strip()!r} where the recipe gives {recipe_gives.strip()!r}"
            what = f"{type(model).__name__} cannot be rebuilt from its recipe: it {where}"
            remedy = "set model.prehab_recipe (see prehab_lib.save.models.build) before saving"
            raise ValueError(f"{what}; {remedy}")


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names, also buffers a state dict leaves out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors on the CPU by their first name, and second name -> first name of tied ones."""
    tensors, tied, first, places = {}, {}, {}, set()
    for name, tensor in _all_tensors(model).items():
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
            continue
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # What shares memory without being one tensor would be written once.
        tensors[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return tensors, tied


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


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, tensor)
