"""Compressed models as transformers knows models: `AutoModel….from_pretrained(folder)`.

Every model type gets a configuration of its own ("lowrank_llama"), which lists the rank of every
low-rank layer, and subclasses of its models that swap those layers when they are built.  `import
prehab_lib.save` registers them; without it transformers says that the model type is unknown.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import is_own_linear, replace_module
from prehab_lib.rivals.quantised import PackedLinear, Packing
from prehab_lib.save import same
from prehab_lib.save.models import build, model_class, transformers_recipe
from prehab_lib.save.rewrite import REWRITES, SplitQKV

# A class that several Auto classes open is said to be opened by the first of these, if any.
FIRST = ("CausalLM", "Seq2SeqLM", "SequenceClassification", "ImageClassification")
PREFIX, TYPE_PREFIX = "LowRank", "lowrank_"


@dataclass
class Changes:
    """What was done to a model since it was a skeleton fresh from its recipe; false for nothing.

    ranks: layer -> rank.  rewrites: keys of `REWRITES`.  packed: layer or factor -> its `Packing`
    as JSON.  rounded: buffers kept although the model computes them, as they are not as computed.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    rewrites: Sequence[str] = field(default_factory=list)
    packed: Mapping[str, dict] = field(default_factory=dict)
    rounded: Sequence[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(map(bool, vars(self).values()))


class LowRankConfig:
    """The fields of `Changes`, beside the family's own."""

    ranks = packed = MappingProxyType({})
    rewrites = rounded = ()

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _register_classes(type(self))


class LowRankModel:
    """Mixed into a transformers model: swaps its layers before weights are loaded."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        # Some heads build their backbone by Auto class: it is one of ours and has done its part.
        inside = isinstance(self.base_model, LowRankModel) and self.base_model is not self
        rewrites = () if inside else config.rewrites
        rounded = [*self._own(dict.fromkeys(config.rounded))]
        own = Changes(self._own(config.ranks), rewrites, self._own(config.packed), rounded)
        reshape(self, own)

    def _own(self, entries: Mapping) -> dict:
        """By the names of this model: a backbone alone knows no prefix and nothing of the head."""
        prefix = f"{self.base_model_prefix}."
        inner = {n.removeprefix(prefix): entries[n] for n in entries if n.startswith(prefix)}
        return inner if inner and self.base_model is self else dict(entries)

    @property
    def prehab_recipe(self) -> dict:
        """The dense skeleton, as `models.build` takes it."""
        recipe = transformers_recipe(self, without=vars(Changes()))
        kind = recipe["config"]["model_type"].removeprefix(TYPE_PREFIX)
        return recipe | {
            "class": self._get_name(),
            "config": recipe["config"] | {"model_type": kind},
        }

    def _get_name(self) -> str:
        """It prints as the model it was made of; its layers show the ranks."""
        return type(self).__name__.removeprefix(PREFIX)

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers writes it, with the ranks of now; ValueError where it reopens as another.

        Nothing is written then.
        """
        recipe, before = self.prehab_recipe, self.config
        changes, tensors = content(self, recipe)
        config = configuration({"recipe": recipe, **vars(changes)})
        same.check_same(self, reopened(config, tensors))
        self.config = config  # transformers writes what it finds here
        try:
            kwargs = {"state_dict": tensors, "save_original_format": False} | kwargs
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config = before


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
    for name in changes.rounded:
        owner, _, leaf = name.rpartition(".")
        module = skeleton.get_submodule(owner)
        module.register_buffer(leaf, getattr(module, leaf), persistent=True)


def adopt(model: nn.Module) -> None:
    """Give a model of transformers whose layers were replaced the class that saves it right."""
    for module in model.modules():
        if hasattr(module, "save_pretrained") and not isinstance(module, LowRankModel):
            module.__class__ = low_rank_class(type(module))


@cache
def low_rank_class(dense: type) -> type:
    """LowRankLlamaForCausalLM for LlamaForCausalLM; so for LlamaConfig."""
    if hasattr(dense, "config_class"):
        mixin, own = LowRankModel, {"config_class": low_rank_class(dense.config_class)}
    else:
        mixin, own = LowRankConfig, {"model_type": TYPE_PREFIX + dense.model_type}
    own |= {"__module__": __name__, "__doc__": mixin.__doc__}
    return type(PREFIX + dense.__name__, (mixin, dense), own)


def register() -> None:
    """Make low-rank model types known to transformers, one for each of its own."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    # A promise stands for a configuration class until it is needed: importing all takes long.
    def kind_of(promise):
        return low_rank_class(CONFIG_MAPPING[promise.model_type.removeprefix(TYPE_PREFIX)])

    def build(promise, *args, **kwargs):
        return kind_of(promise)(*args, **kwargs)

    def from_dict(promise, *args, **kwargs):
        return kind_of(promise).from_dict(*args, **kwargs)

    for name in CONFIG_MAPPING_NAMES:
        own = {"model_type": TYPE_PREFIX + name, "__new__": build}
        own["from_dict"] = classmethod(from_dict)
        CONFIG_MAPPING.register(TYPE_PREFIX + name, type("Promise", (), own), exist_ok=True)


def _autos() -> dict[str, Mapping]:
    """Auto class -> model type -> name of its model, or several names; the usual ones first."""
    from transformers.models.auto import modeling_auto

    names = [f"AutoModelFor{what}" for what in FIRST] + ["AutoModel"]
    names += [name for name in modeling_auto.__all__ if name.startswith("AutoModel")]
    tables = {n: getattr(getattr(modeling_auto, n), "_model_mapping", None) for n in names}
    return {name: table._model_mapping for name, table in tables.items() if table is not None}


@cache
def _register_classes(config: type) -> None:
    import transformers

    model_type = config.model_type.removeprefix(TYPE_PREFIX)
    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, table in _autos().items():
        names = table.get(model_type, ())
        names = (names,) if isinstance(names, str) else names
        models = [getattr(transformers, name, None) for name in names]
        ours = [low_rank_class(m) for m in models if m and m.config_class.model_type == model_type]
        if ours:
            getattr(transformers, auto).register(config, (*ours,), exist_ok=True)


def auto_of(recipe: dict) -> str | None:
    """The Auto class that opens a recipe's model, compressed or not; None where there is none."""
    import transformers

    if recipe["library"] != "transformers":
        return None
    name, model_type = recipe["class"], recipe["config"]["model_type"]
    if getattr(transformers, name).config_class.model_type != model_type:
        return None
    names = {auto: table.get(model_type, ()) for auto, table in _autos().items()}
    return next((auto for auto in names if name in (names[auto], *names[auto])), None)


def changes_in(description: Mapping) -> Changes:
    return Changes(**{name: description[name] for name in vars(Changes())})


def configuration(description: Mapping):
    """The configuration for a recipe and changes: the family's own where nothing was changed."""
    from transformers import AutoConfig

    recipe, changes = description["recipe"], changes_in(description)
    options, name = dict(recipe["config"]), recipe["class"]
    if changes:
        name = PREFIX + name
        options |= vars(changes) | {"model_type": TYPE_PREFIX + options["model_type"]}
    config = AutoConfig.for_model(**options)
    config._attn_implementation, config.architectures = recipe["attention"], [name]
    return config


def content(model: nn.Module, recipe: dict, merged: bool = False) -> tuple[Changes, dict]:
    """What was done to `model` since it was fresh from its recipe, and its tensors where they lie.

    Raises ValueError where the recipe gives other modules.
    """
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
        changes.rounded = [name for name in left_out if name in rounded or name in ours]
    kept = [name for name in tensors if name in usual or name in changes.rounded]
    return changes, {name: tensors[name] for name in kept}


def _check_same_modules(skeleton: nn.Module, model: nn.Module) -> None:
    """Both print the same modules, shapes and constants, and have the same names of tensors."""
    ours = [*str(skeleton).splitlines(), *sorted(_all_tensors(skeleton))]
    theirs = [*str(model).splitlines(), *sorted(_all_tensors(model))]
    for recipe_gives, model_has in zip_longest(ours, theirs, fillvalue="nothing"):
        if recipe_gives != model_has:
            where = f"has {model_has.strip()!r} where the recipe gives {recipe_gives.strip()!r}"
            what = f"{type(model).__name__} cannot be rebuilt from its recipe: it {where}"
            raise ValueError(f"{what}; {same.REMEDY}")


def reopened(config, tensors: dict[str, Tensor]) -> nn.Module:
    """What transformers makes of a configuration's text and tensors, which it holds themselves.

    Raises ValueError where one is missing, unexpected or of another shape.
    """
    from transformers.utils import logging

    (name,) = config.architectures
    dense = model_class(name.removeprefix(PREFIX))
    kind = low_rank_class(dense) if name.startswith(PREFIX) else dense
    again = type(config).from_dict(json.loads(config.to_json_string()))
    again._attn_implementation = config._attn_implementation
    device, level = next(iter(tensors.values())).device, logging.get_verbosity()
    dtypes = (t.dtype for n, t in tensors.items() if n.endswith("weight") and t.is_floating_point())
    how = dict(config=again, state_dict=dict(tensors), dtype=next(dtypes, "auto"))
    how |= {} if device.type == "cpu" else {"device_map": {"": device}}
    logging.set_verbosity_error()
    try:
        model, found = kind.from_pretrained(
            None, ignore_mismatched_sizes=True, output_loading_info=True, **how
        )
    finally:
        logging.set_verbosity(level)
    for what, names in found.items():
        if names:
            first = min(map(str, names))
            raise ValueError(f"{first} is {what.removesuffix('_keys')} ({len(names)} in all)")
    return model


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
        if tensor.is_meta:
            where = f"{name!r} is on the meta device, its values are not in memory"
            raise ValueError(f"{where}: load the model without device_map or offloading")
        tensor = tensor.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # What shares memory without being one tensor would be written once.
        tensors[name] = tensor.clone() if place in places else tensor
        places.add(place)
    if len({tensor.device for tensor in tensors.values()}) > 1:
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    return tensors


def restore(model: nn.Module, folder: Path) -> None:
    """What `from_pretrained` sets beside the weights: precision, origin, generation settings."""
    if hasattr(model, "config_class"):  # of transformers
        model.config.dtype, model.config.name_or_path = model.dtype, str(folder)
        if (folder / "generation_config.json").is_file() and model.can_generate():
            model.generation_config = type(model.generation_config).from_pretrained(folder)


def __getattr__(name: str) -> type:
    """The generated classes by name, so that they can be imported and pickled like written ones."""
    import transformers

    dense = name.removeprefix(PREFIX)
    if dense == name or not hasattr(transformers, dense):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return low_rank_class(getattr(transformers, dense))
