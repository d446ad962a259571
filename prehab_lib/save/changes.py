"""What was done to a model since it was built, done again to a skeleton, and its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import torch
from torch import Tensor, nn

from prehab_lib.batches import refuse_meta
from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import is_own_linear, replace_module
from prehab_lib.rivals.quantised import PackedLinear, Packing
from prehab_lib.save.models import build
from prehab_lib.save.rewrite import REWRITES, SplitQKV
from prehab_lib.save.same import REMEDY


@dataclass
class Changes:
    """What was done to a model since it was a skeleton fresh from its recipe; false for nothing.

    ranks: layer -> rank.  rewrites: keys of `REWRITES`.  packed: layer or factor -> its `Packing`
    as JSON.  buffers: those kept although the model computes them, as they are not as computed.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    rewrites: Sequence[str] = field(default_factory=list)
    packed: Mapping[str, dict] = field(default_factory=dict)
    buffers: Sequence[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(map(bool, vars(self).values()))


def changes_in(description: Mapping) -> Changes:
    return Changes(*(description[name] for name in ("ranks", "rewrites", "packed", "rounded")))


@torch.random.fork_rng(devices=[])  # new layers are drawn before they are filled
def reshape(skeleton: nn.Module, changes: Changes) -> None:
    """Do to a skeleton fresh from its recipe what was done to the model that was saved."""
    for name in changes.rewrites:
        REWRITES[name](skeleton)
    swaps = [(name, LowRankLinear, rank) for name, rank in changes.ranks.items()]
    swaps += [(name, PackedLinear, Packing(**packing)) for name, packing in changes.packed.items()]
    for name, kind, how in swaps:  # packed layers last: they may be factors of low-rank ones
        old = skeleton.get_submodule(name)
        if isinstance(old, kind):
            continue
        if kind is PackedLinear:  # in the precision that from_pretrained was asked for
            how = replace(how, dtype=str(old.weight.dtype).removeprefix("torch."))
        where = dict(bias=old.bias is not None, device=old.weight.device)
        replace_module(skeleton, name, kind(old.in_features, old.out_features, how, **where))
    for name in changes.buffers:
        owner, _, leaf = name.rpartition(".")
        module = skeleton.get_submodule(owner)
        module.register_buffer(leaf, getattr(module, leaf), persistent=True)


def content(model: nn.Module, recipe: dict, merged: bool = False) -> tuple[Changes, dict]:
    """What was done to `model` since it was fresh from its recipe, and its tensors where they lie.

    Raises ValueError where the recipe gives other modules, or a weight is not in memory.
    """
    refuse_meta(model)
    skeleton, changes, tensors = build(recipe), Changes(), _distinct(model)
    if any(map(is_own_linear, skeleton.modules())) and not any(map(is_own_linear, model.modules())):
        changes.rewrites.append("to_linear")
    if any(isinstance(module, SplitQKV) for module in model.modules()):
        changes.rewrites.append("split_qkv")
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            changes.ranks[name] = module.rank
        elif isinstance(module, PackedLinear):
            changes.packed[name] = module.packing.json()
    reshape(skeleton, changes)
    _check_same_modules(skeleton, model)
    usual, ours, computed = skeleton.state_dict(), model.state_dict(), _all_tensors(skeleton)
    left_out = [name for name in tensors if name not in usual]
    if not merged:  # these are not as computed: only the checkpoint brings them back
        rounded = [name for name in left_out if tensors[name].dtype != computed[name].dtype]
        changes.buffers = [name for name in left_out if name in rounded or name in ours]
    kept = [name for name in tensors if name in usual or name in changes.buffers]
    return changes, {name: tensors[name] for name in kept}


def _check_same_modules(skeleton: nn.Module, model: nn.Module) -> None:
    """Both print the same modules, shapes and constants, and have the same names of tensors."""
    printed = ([*str(m).splitlines(), *sorted(_all_tensors(m))] for m in (skeleton, model))
    for recipe_gives, model_has in zip_longest(*printed, fillvalue="nothing"):
        if recipe_gives != model_has:
            where = f"has {model_has.strip()!r} where the recipe gives {recipe_gives.strip()!r}"
            what = f"{type(model).__name__} cannot be rebuilt from its recipe: it {where}"
            raise ValueError(f"{what}; {REMEDY}")


def _all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under each of its names, also buffers a state dict leaves out."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters | dict(model.named_buffers(remove_duplicate=False))


def _distinct(model: nn.Module) -> dict[str, Tensor]:
    """All tensors, tied ones by their first name."""
    tensors, known, places = {}, set(), set()
    for name, tensor in _all_tensors(model).items():
        if id(tensor) in known:
            continue
        known.add(id(tensor))
        tensor = tensor.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # What shares memory without being one tensor would be written once.
        tensors[name] = tensor.clone() if place in places else tensor
        places.add(place)
    if len({tensor.device for tensor in tensors.values()}) > 1:
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    return tensors
