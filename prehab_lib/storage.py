"""A compressed model on disk: one safetensors file and one JSON that says how to build the skeleton around it."""

import json
import os
import shutil
from pathlib import Path

from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import replace_module
from prehab_lib.models import build, recipe_of
from prehab_lib.rewrite import REWRITES, rewrites_between

WEIGHTS, DESCRIPTION, FORMAT = "model.safetensors", "prehab.json", 1


def save(model: nn.Module, folder: str | os.PathLike, **about) -> Path:
    """Write `folder` with every parameter and buffer (tied ones once) and the recipe; about: more JSON to keep with it.

    A model saved there before is replaced once the new one is complete.  Raises ValueError where `folder` holds anything
    else or the model cannot be rebuilt from a recipe, OSError with one sentence where the disk is full.
    """
    from safetensors.torch import save_file

    folder = Path(folder).resolve()
    _check_target(folder)
    ranks = {name: module.rank for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    recipe = recipe_of(model)
    skeleton = build(recipe)
    rewrites = rewrites_between(skeleton, model)
    _check_rebuild(model, skeleton, rewrites, ranks)
    tensors, tied = _tensors(model)
    description = {
        "format": FORMAT,
        "recipe": recipe,
        "rewrites": rewrites,
        "ranks": ranks,
        "tied": tied,
        "about": about,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part / WEIGHTS)
        (part / DESCRIPTION).write_text(json.dumps(description, indent=1))
        _replace_folder(part, folder)
    except (OSError, RuntimeError, _safetensors_error()) as problem:
        raise OSError(
            f"the model could not be written to {folder}: {problem}; is there space left on the disk?"
        ) from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def load(folder: str | os.PathLike) -> nn.Module:
    """The model that `save` wrote, in eval mode on the CPU, with bit-equal outputs.  Unpickles nothing, runs no foreign code.

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged or where names or shapes do not
    match: nothing is ever re-initialised silently.
    """
    folder = Path(folder)
    description = _read_description(folder)
    tensors = _read_tensors(folder / WEIGHTS)
    try:
        model = build(description["recipe"])
        _reshape(model, description.get("rewrites", []), description["ranks"])
    except (TypeError, KeyError, AttributeError, RuntimeError, ValueError) as problem:
        raise ValueError(f"{folder / DESCRIPTION} describes no model this version can build: {problem}") from problem
    expected = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for copy, original in description["tied"].items():
        tensors[copy] = tensors.get(original)
    _check_match(folder, expected, tensors)
    for name, tensor in tensors.items():
        _assign(model, name, tensor, is_parameter=isinstance(expected[name], nn.Parameter))
    for copy, original in description["tied"].items():
        parent, _, leaf = copy.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _get(model, original))
    return model.eval()


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All parameters and buffers by name (also buffers that a state dict leaves out), and the second names of tied ones."""
    seen: dict[int, str] = {}
    tensors, tied = {}, {}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        first = seen.setdefault(id(tensor), name)
        if first == name:
            tensors[name] = tensor
        else:
            tied[name] = first
    return tensors, tied


def _reshape(skeleton: nn.Module, rewrites: list[str], ranks: dict[str, int]) -> None:
    """Do to a skeleton fresh from its recipe what was done to the model that was saved."""
    for name in rewrites:
        REWRITES[name](skeleton)
    for name, rank in ranks.items():
        dense = skeleton.get_submodule(name)
        low_rank = LowRankLinear(dense.in_features, dense.out_features, rank, bias=dense.bias is not None)
        replace_module(skeleton, name, low_rank)


def _check_rebuild(model: nn.Module, skeleton: nn.Module, rewrites: list[str], ranks: dict[str, int]) -> None:
    """The skeleton must come to print as the model does: same modules, shapes, activations, constants."""
    _reshape(skeleton, rewrites, ranks)
    if str(skeleton) != str(model):
        ours, theirs = str(skeleton).splitlines(), str(model).splitlines()
        first = next((pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]), (ours[-1], theirs[-1]))
        raise ValueError(
            f"{type(model).__name__} cannot be rebuilt from its recipe: it has {first[1].strip()!r} where the recipe gives "
            f"{first[0].strip()!r}; set model.prehab_recipe (see prehab_lib.models.build) before saving"
        )


def _read_description(folder: Path) -> dict:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no compressed model: {DESCRIPTION} is missing (was it made by surgery.save?)"
        )
    try:
        description = json.loads(path.read_text())
        missing = {"format", "recipe", "ranks", "tied"} - set(description)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as problem:
        raise ValueError(f"{path} is damaged: {problem}") from problem
    shapes = {"recipe": dict, "rewrites": list, "ranks": dict, "tied": dict}
    missing |= {name for name, kind in shapes.items() if not isinstance(description.get(name, kind()), kind)}
    if missing or description["format"] != FORMAT:
        raise ValueError(f"{path} is of another format than this version writes ({FORMAT}): save the model again")
    return description


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the folder is not complete, save the model again")
    try:
        return load_file(path)
    except (_safetensors_error(), ValueError, OSError) as problem:
        raise ValueError(f"{path} is damaged ({problem}): save the model again, or copy the file again") from problem


def _check_match(folder: Path, expected: dict[str, Tensor], found: dict[str, Tensor | None]) -> None:
    for kind, names in (("lacks", set(expected) - set(found)), ("has the unknown tensor", set(found) - set(expected))):
        if names:
            raise ValueError(
                f"{folder} {kind} {sorted(names)[0]!r} ({len(names)} in all): it does not fit its own description"
            )
    for name, tensor in found.items():
        if tensor is None or tensor.shape != expected[name].shape:
            shape = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"{folder}: {name!r} has shape {shape}, the model needs {tuple(expected[name].shape)}")


def _assign(model: nn.Module, name: str, tensor: Tensor, is_parameter: bool) -> None:
    parent, _, leaf = name.rpartition(".")
    value = nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if is_parameter else tensor
    setattr(model.get_submodule(parent), leaf, value)


def _get(model: nn.Module, name: str) -> Tensor:
    parent, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(parent), leaf)


def _check_target(folder: Path) -> None:
    if folder.is_dir() and ((folder / DESCRIPTION).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise ValueError(f"{folder} holds other files than a saved model: name a new folder")


def _replace_folder(part: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
