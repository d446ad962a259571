"""Compressed models as transformers knows models: `AutoModel….from_pretrained(folder)`.

Every model type gets a configuration of its own ("lowrank_llama"), which lists the rank of every
low-rank layer, and subclasses of its models that swap those layers when they are built.  `import
prehab_lib.save` registers them; without it transformers says that the model type is unknown.
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from prehab_lib.save import same
from prehab_lib.save.changes import Changes, content, reshape
from prehab_lib.save.models import model_class, transformers_recipe

# A class that several Auto classes open is said to be opened by the first of these, if any.
FIRST = ("CausalLM", "Seq2SeqLM", "SequenceClassification", "ImageClassification")
PREFIX, TYPE_PREFIX = "LowRank", "lowrank_"


class LowRankConfig:
    """The fields of `Changes`, beside the family's own."""

    ranks = packed = MappingProxyType({})
    rewrites = buffers = ()

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
        buffers = [*self._own(dict.fromkeys(config.buffers))]
        reshape(self, Changes(self._own(config.ranks), rewrites, self._own(config.packed), buffers))

    def _own(self, entries: Mapping) -> dict:
        """By the names of this model: a backbone alone knows no prefix and nothing of the head."""
        prefix = f"{self.base_model_prefix}."
        inner = {n.removeprefix(prefix): entries[n] for n in entries if n.startswith(prefix)}
        return inner if inner and self.base_model is self else dict(entries)

    @property
    def prehab_recipe(self) -> dict:
        """The dense skeleton, as `models.build` takes it."""
        recipe = transformers_recipe(self, without=vars(Changes()))
        recipe["class"] = self._get_name()
        recipe["config"]["model_type"] = self.config.model_type.removeprefix(TYPE_PREFIX)
        return recipe

    def _get_name(self) -> str:
        """It prints as the model it was made of; its layers show the ranks."""
        return type(self).__name__.removeprefix(PREFIX)

    def save_pretrained(self, save_directory, *, example=None, **kwargs):
        """As transformers writes it, with the ranks of now; ValueError where it reopens as another.

        Nothing is written then. example: a batch, for a model whose inputs are not known.
        """
        recipe, before = self.prehab_recipe, self.config
        changes, tensors = content(self, recipe)
        config = configuration(recipe, changes)
        same.check_same(self, reopened(config, tensors), example=example)
        self.config = config  # transformers writes what it finds here
        try:
            kwargs = {"state_dict": tensors, "save_original_format": False} | kwargs
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config = before


def adopt(model: nn.Module) -> None:
    """Give a model of transformers whose layers were replaced the class that saves it right."""
    for module in model.modules():
        known = hasattr(type(module), "config_class") and hasattr(type(module), "save_pretrained")
        if known and not isinstance(module, LowRankModel):  # its class: wrappers lend attributes
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


def _autos(model_type: str) -> dict[str, list[type]]:
    """Auto class -> the models of a type that it opens, the usual Auto classes first."""
    import transformers

    names = [f"AutoModelFor{what}" for what in FIRST] + ["AutoModel"]
    names += [name for name in transformers.models.auto.__all__ if name.startswith("AutoModel")]
    found = {}
    for name in names:
        table = getattr(getattr(transformers, name, None), "_model_mapping", None)
        kinds = () if table is None else table._model_mapping.get(model_type, ())
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        models = [kind for kind in (getattr(transformers, k, None) for k in kinds) if kind]
        found[name] = [kind for kind in models if kind.config_class.model_type == model_type]
    return {name: models for name, models in found.items() if models}


@cache
def _register_classes(config: type) -> None:
    import transformers

    transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
    for auto, models in _autos(config.model_type.removeprefix(TYPE_PREFIX)).items():
        ours = tuple(map(low_rank_class, models))
        getattr(transformers, auto).register(config, ours, exist_ok=True)


def auto_of(recipe: dict) -> str | None:
    """The Auto class that opens a recipe's model, compressed or not; None where there is none."""
    autos = _autos(recipe.get("config", {}).get("model_type"))
    names = {auto: [kind.__name__ for kind in models] for auto, models in autos.items()}
    return next((auto for auto in names if recipe["class"] in names[auto]), None)


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
    device = next(iter(tensors.values())).device
    how = dict(config=again, state_dict=dict(tensors), dtype=precision(tensors))
    how |= {} if device.type == "cpu" else {"device_map": {"": device}}
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        how |= dict(ignore_mismatched_sizes=True, output_loading_info=True)
        model, found = kind.from_pretrained(None, **how)
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    for what, names in found.items():
        if names:
            first = min(map(str, names))
            raise ValueError(f"{first} is {what.removesuffix('_keys')} ({len(names)} in all)")
    return model


def precision(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of most weights, whatever order a file has them in."""
    weights = (tensor for name, tensor in tensors.items() if name.endswith("weight"))
    counted = Counter(tensor.dtype for tensor in weights if tensor.is_floating_point())
    return max(counted, key=counted.get, default=torch.float32)


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
