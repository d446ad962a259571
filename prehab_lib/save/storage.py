"""A compressed model on disk: safetensors, and one JSON that says how to build the skeleton."""

import json
import os
from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from prehab_lib.batches import device_of
from prehab_lib.rivals.quantised import Packing
from prehab_lib.save import card, files, pretrained
from prehab_lib.save.changes import changes_in, content, reshape
from prehab_lib.save.files import DESCRIPTION, check_target
from prehab_lib.save.hub import nothing_fetched, one_line
from prehab_lib.save.models import build, recipe_of, refuse_foreign
from prehab_lib.save.rewrite import fill_dense
from prehab_lib.save.same import REMEDY, check_same


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    *,
    tokenizer=None,
    merged: bool = False,
    max_shard_size: int | str = "5GB",
    example=None,
    ranks: dict[str, int | None] | None = None,
    **about,
) -> Path:
    """Write `folder` with every parameter and buffer (tied ones once) and the recipe.

    tokenizer: of transformers, to save along.  merged: multiply the factors out and write the dense
    model, which needs no prehab_lib to open.  max_shard_size: of a file, in bytes or as "5GB".
    about: more JSON to keep with it, and what the model card says (`card.text`).  example: a batch
    for the comparison, where `same.small_inputs` knows none.  ranks: to keep as ranks.json.

    First the model is rebuilt, from its weights in memory and what would be written, and compared
    in a forward pass; a model saved there before is replaced once the new one is complete.  Raises
    ValueError where `folder` holds any other file or the rebuilt model is not the same function,
    OSError where the disk is full.
    """
    check_target(folder)
    folder, recipe = Path(folder).resolve(), recipe_of(model)
    description, tensors = _checked(model, recipe, about, example)
    companions = [tokenizer, getattr(model, "generation_config", None)]
    if about or description["ranks"] or description["packed"]:
        own = recipe.get("class") if merged and recipe["library"] == "transformers" else None
        details = about | {"matrices in 8 bits": len(description["packed"]) or None}
        companions.append(card.text(model, pretrained.auto_of(recipe) or own, merged, details))
    if merged:
        dense = fill_dense(build(recipe), model)
        check_same(model, dense, example, loose=True)
        description, tensors = _checked(dense, recipe, about, example, merged)
    if recipe["library"] == "transformers":
        config = pretrained.configuration(recipe, changes_in(description))
        config.dtype = pretrained.precision(tensors)
        companions.append(config)
    shards = dict(max_shard_size=max_shard_size, metadata={"format": "pt"})  # transformers asks it
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(folder) as part:
            save_torch_state_dict({n: t.cpu() for n, t in tensors.items()}, part, **shards)
            for companion in filter(None, companions):
                is_card = isinstance(companion, card.ModelCard)
                companion.save(part / "README.md") if is_card else companion.save_pretrained(part)
            if ranks is not None:
                (part / "ranks.json").write_text(json.dumps(ranks, indent=1))
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
        description = files.read_description(folder)
        tensors = files.read_weights(folder, description["files"])
        with nothing_fetched():
            model = _rebuilt(description, tensors)
        pretrained.restore(model, folder)
    except files.Damaged:
        raise
    except Exception as problem:  # whatever a library raises for a recipe or files like these
        what = f"{one_line(folder)} holds no model that this version can open"
        raise ValueError(f"{what}: {one_line(problem)}") from problem
    return model.eval()


def _checked(
    model: nn.Module, recipe: dict, about: dict, example=None, merged: bool = False
) -> tuple[dict, dict[str, Tensor]]:
    """The description and the tensors that `load` will find; ValueError as `save` says."""
    changes, tensors = content(model, recipe, merged)
    description = {"format": files.FORMAT, "recipe": recipe, "rewrites": changes.rewrites}
    description |= {"ranks": changes.ranks, "packed": changes.packed, "rounded": changes.buffers}
    description["about"] = about
    try:
        description = json.loads(json.dumps(description))
        again = _rebuilt(description, tensors)
    except Exception as problem:  # whatever a library raises
        what = f"{type(model).__name__} would not reopen as it is"
        raise ValueError(f"{what} ({one_line(problem)}): {REMEDY}") from problem
    device = next(iter(tensors.values())).device
    check_same(model, again.to(device), example, loose=device != device_of(model))
    return description, tensors


def _rebuilt(description: dict, tensors: dict[str, Tensor]) -> nn.Module:
    """The model of a description and its tensors, which it holds themselves."""
    recipe, changes = description["recipe"], changes_in(description)
    refuse_foreign(recipe)
    if recipe["library"] == "transformers":
        return pretrained.reopened(pretrained.configuration(recipe, changes), tensors)
    model = build(recipe)
    reshape(model, changes)
    for name, packing in description["packed"].items():
        model.get_submodule(name).packing = Packing(**packing)  # with the dtype it had
    model.load_state_dict(tensors, assign=True)
    return model
