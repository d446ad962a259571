"""A checkpoint is opened whole or not at all: no hole in its weights.

What a library fills with random numbers, or leaves out, is a model that nobody trained.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from torch import nn

from prehab_lib.batches import refuse_meta

SHOWN = 3  # names of a sentence
POOLER = "pooler."  # counts as head: an encoder trained on masked words has none


def refuse_adapter(source: str | os.PathLike) -> None:
    """Raises ValueError for a folder of peft, which holds a change to a model and no model."""
    if os.path.isfile(Path(source) / "adapter_config.json"):
        remedy = "open it with peft, merge it (merge_and_unload) and save the merged model"
        raise ValueError(f"{str(source)!r} is an adapter of peft: {remedy}")


# Buffers that older versions of transformers stored and newer ones make themselves.
BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$|position_ids$")


def check_tensors(source: str | os.PathLike, **wrong: Collection[str]) -> None:
    """Raises ValueError that counts and names the tensors by which a file and its model differ.

    wrong: "missing", "unexpected", "mismatched" -> names.
    """
    parts = []
    for kind, names in wrong.items():
        if names:
            first = ", ".join(sorted(names)[:SHOWN]) + ", …" * (len(names) > SHOWN)
            parts.append(f"{len(names)} {kind} ({first})")
    if parts:
        remedy = "copy the whole checkpoint again, or correct its config.json"
        tensors = f"the tensors of {str(source)!r} are not those of its model"
        raise ValueError(f"{tensors}: {'; '.join(parts)}: {remedy}")


def check_loaded(model: nn.Module, found: dict, source: str, new_head: bool = False) -> None:
    """`check_tensors` of what `from_pretrained` reports as `output_loading_info`.

    new_head: what is beside the base model is missing whole.  A head of another kind of model may
    always be left out.  Raises ValueError too for weights that were not loaded.
    """
    refuse_meta(model)
    base, prefix = model.base_model, f"{model.base_model_prefix}."
    missing, unexpected = set(found["missing_keys"]), set(found["unexpected_keys"])
    if type(model).__name__ not in (model.config.architectures or ()):
        own = (prefix, *(f"{name}." for name, _ in base.named_children() if name != POOLER[:-1]))
        other = (prefix + POOLER, POOLER)
        unexpected = {n for n in unexpected if n.startswith(own) and not n.startswith(other)}
    if new_head and base is not model:
        head = {name for name in model.state_dict() if not name.startswith(prefix)}
        if not head <= missing:
            kept = ", ".join(sorted(head - missing)[:SHOWN])
            raise ValueError(f"{source!r} brings a head of another task ({kept}): give its encoder")
        pooler = {name for name in model.state_dict() if name.startswith(prefix + POOLER)}
        missing -= head | (pooler if pooler <= missing else set())
    unexpected = {name for name in unexpected if not BUFFERS.search(name)}
    mismatched = {entry[0] for entry in found["mismatched_keys"]}
    check_tensors(source, missing=missing, unexpected=unexpected, mismatched=mismatched)
