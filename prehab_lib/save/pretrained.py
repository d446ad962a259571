"""Compressed models as transformers knows models: `AutoModel….from_pretrained(folder)`.

A family gets a configuration of its own ("lowrank_llama"), which lists the rank of every low-rank
layer, and subclasses of its models that swap those layers when they are built.  `import
prehab_lib.save` registers them; without it transformers says that the model type is unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

from torch import nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import replace_module
from prehab_lib.rivals.quantised import PackedLinear, Packing
from prehab_lib.save.models import plain
from prehab_lib.save.rewrite import REWRITES

AUTO = ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel")
_GENERATING = {"GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel"}
# Family -> its configuration, and its model for each of AUTO.
FAMILIES = {}
for family in ("Llama", "Mistral", "Qwen2", "Qwen3", "OPT", "GPT2", "Bert"):
    causal = _GENERATING.get(family, f"{family}ForCausalLM")
    heads = (causal, f"{family}ForSequenceClassification", f"{family}Model")
    FAMILIES[family.lower()] = (f"{family}Config", *heads)
PREFIX, TYPE_PREFIX = "LowRank", "lowrank_"


@dataclass
class Changes:
    """What was done to a model since it was a skeleton fresh from its recipe; false for nothing.

    ranks: layer -> rank.  rewrites: keys of `REWRITES`.  packed: layer or factor -> its `Packing`
    as JSON.  buffers: those kept although transformers computes them, as they were rounded.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    rewrites: Sequence[str] = field(default_factory=list)
    packed: Mapping[str, dict] = field(default_factory=dict)
    buffers: Sequence[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(map(bool, vars(self).values()))


class LowRankConfig:
    """The fields of `Changes`, beside the family's own."""

    ranks = packed = MappingProxyType({})
    rewrites = buffers = ()

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _register_classes(self.model_type.removeprefix(TYPE_PREFIX))


class LowRankModel:
    """Mixed into a transformers model: swaps its layers before weights are loaded."""

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        # Some heads build their backbone by Auto class: it is one of ours and has done its part.
        inside = isinstance(self.base_model, LowRankModel) and self.base_model is not self
        rewrites = () if inside else config.rewrites
        reshape(self, Changes(self._own(config.ranks), rewrites, self._own(config.packed)))
        for name in self._own(dict.fromkeys(config.buffers)):
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            module.register_buffer(leaf, getattr(module, leaf), persistent=True)

    def _own(self, entries: Mapping) -> dict:
        """By the names of this model: a backbone alone knows no prefix and nothing of the head."""
        prefix = f"{self.base_model_prefix}."
        inner = {n.removeprefix(prefix): entries[n] for n in entries if n.startswith(prefix)}
        return inner if inner and self.base_model is self else dict(entries)

    @property
    def prehab_recipe(self) -> dict:
        """The dense skeleton, as `models.build` takes it."""
        config = plain(self.config, without=vars(Changes()))
        config["model_type"] = self.config.model_type.removeprefix(TYPE_PREFIX)
        about = {"library": "transformers", "class": self._get_name(), "config": config}
        return about | {"attention": self.config._attn_implementation}

    def _get_name(self) -> str:
        """It prints as the model it was made of; its layers show the ranks."""
        return type(self).__name__.removeprefix(PREFIX)


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


@cache
def low_rank_class(family: str, name: str) -> type:
    """LowRankLlamaForCausalLM for "llama" and "LlamaForCausalLM"; so for "LlamaConfig"."""
    import transformers

    config = FAMILIES[family][0]
    if name == config:
        mixin, own = LowRankConfig, {"model_type": TYPE_PREFIX + family}
    else:
        mixin, own = LowRankModel, {"config_class": low_rank_class(family, config)}
    own |= {"__module__": __name__, "__doc__": mixin.__doc__}
    return type(PREFIX + name, (mixin, getattr(transformers, name)), own)


def register() -> None:
    """Make the families' low-rank model types known to transformers."""
    from transformers import AutoConfig, PreTrainedConfig

    # A promise stands for a configuration class until it is needed: importing all takes a second.
    def build(promise, *args, **kwargs):
        family = promise.model_type.removeprefix(TYPE_PREFIX)
        return low_rank_class(family, FAMILIES[family][0])(*args, **kwargs)

    for kind in (TYPE_PREFIX + family for family in FAMILIES):
        own = {"model_type": kind, "__new__": build}
        AutoConfig.register(kind, type("Promise", (PreTrainedConfig,), own), exist_ok=True)


@cache
def _register_classes(family: str) -> None:
    import transformers

    config, *models = (low_rank_class(family, name) for name in FAMILIES[family])
    transformers.AutoConfig.register(TYPE_PREFIX + family, config, exist_ok=True)
    for auto, model in zip(AUTO, models, strict=True):
        getattr(transformers, auto).register(config, model, exist_ok=True)


def family_of(recipe: dict) -> str | None:
    """The family of a recipe, None where transformers could not open its compressed form."""
    family = recipe.get("config", {}).get("model_type")
    return family if recipe.get("class") in FAMILIES.get(family, ())[1:] else None


def configuration(recipe: dict, changes: Changes):
    """The configuration of a recipe's model: the family's own where nothing was changed."""
    from transformers import AutoConfig

    options, name = dict(recipe["config"]), recipe["class"]
    if changes:
        name = PREFIX + name
        options |= vars(changes) | {"model_type": TYPE_PREFIX + options["model_type"]}
    config = AutoConfig.for_model(**options)
    config._attn_implementation, config.architectures = recipe["attention"], [name]
    return config


def restore(model: nn.Module, folder: Path) -> None:
    """What `from_pretrained` sets beside the weights: precision, origin, generation settings."""
    if hasattr(model, "config_class"):  # of transformers
        model.config.dtype, model.config.name_or_path = model.dtype, str(folder)
        if (folder / "generation_config.json").is_file() and model.can_generate():
            model.generation_config = type(model.generation_config).from_pretrained(folder)


def __getattr__(name: str) -> type:
    """The generated classes by name, so that they can be imported and pickled like written ones."""
    dense = name.removeprefix(PREFIX)
    for family, names in FAMILIES.items():
        if dense in names and dense != name:
            return low_rank_class(family, dense)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
