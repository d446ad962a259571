"""Models by hub name or local folder, small ones built here; and the recipe of a skeleton."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from prehab_lib.inputs import check_choice
from prehab_lib.save import checkpoint
from prehab_lib.save.hub import explained, optional
from prehab_lib.save.packaged import local, named
from prehab_lib.save.rewrite import to_linear

_CODE = re.compile("^attention$|_implementation$")  # keys under which a kernel may be named
LOCAL = "give the folder of a local copy instead"


def small_vit(
    depth: int, width: int, heads: int, patch=4, seed=0, image_size=(8, 16), channels=1, classes=100
) -> nn.Module:
    """timm's VisionTransformer, random weights from `seed`; the defaults suit the digit pairs."""
    kwargs = dict(img_size=list(image_size), patch_size=patch, in_chans=channels)
    kwargs |= dict(num_classes=classes, embed_dim=width, depth=depth, num_heads=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build({"library": "timm", "class": "VisionTransformer", "kwargs": kwargs})


def image_model(source: str, *, pretrained: bool = True) -> nn.Module:
    """A timm model by name and tag ("vit_base_patch16_224.augreg2_in21k_ft_in1k") or local folder.

    pretrained=False: random weights. Raises as `hub.explained`.
    """
    timm = optional("timm")
    source = named(source)
    name, architecture = source, source.split(".")[0]
    if os.path.isdir(source):
        if not (Path(source) / "config.json").is_file():
            raise FileNotFoundError(f"{source} is no timm model folder: it has no config.json")
        if pretrained and not any(Path(source).glob("*.safetensors")):
            raise FileNotFoundError(f"{source} holds no safetensors: convert its weights first")
        name = f"local-dir:{Path(source).resolve()}"
    elif "/" not in source and not timm.is_model(architecture):
        unknown = f"model = {source!r} is neither a folder nor a model timm knows"
        raise ValueError(f"{unknown}: see timm.list_models()")
    with explained(f"the model {source!r}", LOCAL):
        return timm.create_model(name, pretrained=pretrained)


def text_model(source: str, auto_class: str, *, new_head: bool = False, **kwargs) -> nn.Module:
    """A transformers model by the name of its Auto class; source: as `packaged.local` takes it.

    new_head: of an encoder, the classifier is random. Safetensors only; GPT-2's transposed layers
    become `nn.Linear`. Raises as `local`, `hub.explained` and the checks of `checkpoint`, and
    ValueError for a configuration that would have foreign code fetched and run.
    """
    transformers = optional("transformers")
    place, source = local(source), named(source)
    checkpoint.refuse_adapter(place)
    safe = dict(use_safetensors=True, trust_remote_code=False)
    safe |= dict(output_loading_info=True, ignore_mismatched_sizes=True)  # refused below, by name
    with explained(f"the model {source!r}", LOCAL):
        refuse_foreign(transformers.PreTrainedConfig.get_config_dict(place)[0])
        model, found = getattr(transformers, auto_class).from_pretrained(place, **safe, **kwargs)
    checkpoint.check_loaded(model, found, source, new_head)
    model.config._name_or_path = source  # the model card asks it
    to_linear(model)
    return model


def build(recipe: dict) -> nn.Module:
    """The skeleton a recipe describes, fresh; of transformers, without memory for its weights.

    Raises ValueError where it is not known.
    """
    check_choice("recipe of library", recipe.get("library"), BUILDERS)
    with torch.random.fork_rng(devices=[]):  # initial weights must not move the caller's state
        model = BUILDERS[recipe["library"]](recipe)
    model.prehab_recipe = recipe
    return model


def recipe_of(model: nn.Module) -> dict:
    """`model.prehab_recipe`, or what timm.create_model and transformers leave; else ValueError."""
    if "_orig_mod" in dict(model.named_children()):
        raise ValueError("the model is inside torch.compile: save what it wraps, model._orig_mod")
    read = READERS.get(type(model).__module__.split(".")[0], lambda model: None)
    recipe = getattr(model, "prehab_recipe", None) or read(model)
    if recipe is None:
        unknown = f"{type(model).__name__} is neither of timm.create_model nor of transformers"
        remedy = "set model.prehab_recipe to what prehab_lib.save.models.build understands"
        raise ValueError(f"{unknown}: {remedy} before saving")
    return recipe


def _build_timm(recipe: dict) -> nn.Module:
    import timm

    kwargs, name = recipe["kwargs"], recipe.get("name")
    loading = [key for key in kwargs if key.startswith(("pretrained", "checkpoint", "cache"))]
    if loading:
        raise ValueError(f"a recipe builds an empty model: {loading[0]!r} has no place in it")
    if name is None and recipe["class"] == "VisionTransformer":
        return timm.models.VisionTransformer(**kwargs)
    if name is None or not timm.is_model(name):
        raise ValueError(f"recipe of timm model {name or recipe['class']!r} is not known")
    return timm.create_model(name, pretrained=False, **kwargs)


def _read_timm(model: nn.Module) -> dict | None:
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if not name:  # its class was called by hand
        return None
    # What create_model was given; what was set since then wins.
    kwargs = getattr(model, "_model_args", {}) | {"num_classes": model.num_classes}
    patches = getattr(model, "patch_embed", None)
    if getattr(patches, "img_size", None):
        kwargs |= {"in_chans": patches.proj.in_channels, "img_size": list(patches.img_size)}
    return {"library": "timm", "name": name, "kwargs": kwargs}


def _build_transformers(recipe: dict) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(**recipe["config"])
    config._attn_implementation = recipe["attention"]
    with torch.device("meta"):  # every tensor will be given
        return model_class(recipe["class"])(config)


def model_class(name: str) -> type:
    """A class of transformers by its name.  Raises ValueError for what is no model of theirs."""
    import transformers

    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        unknown = f"recipe of transformers class {name!r} is not known"
        raise ValueError(f"{unknown}: name one of transformers in model.prehab_recipe")
    return kind


def transformers_recipe(model: nn.Module, without: Iterable[str] = ()) -> dict:
    """As `recipe_of`; the configuration says of the head's tie what is true in memory."""
    # As `AutoConfig.for_model` takes it; it does not tell where a model lay.
    dropped = {*without, "transformers_version", "architectures", "_name_or_path"}
    described = model.config.to_dict()
    config = {key: value for key, value in described.items() if key not in dropped}
    attention = model.config._attn_implementation
    head = model.get_output_embeddings()
    if head is not None and "tie_word_embeddings" in config:
        config["tie_word_embeddings"] = head.weight is model.get_input_embeddings().weight
    about = {"config": config, "attention": None if "/" in str(attention) else attention}
    return {"library": "transformers", "class": type(model).__name__, **about}


def refuse_foreign(settings, key: str = "") -> None:
    """Raises ValueError for code of others: attention by the name of a repository, at any depth."""
    if isinstance(settings, dict | list):
        named = settings.items() if isinstance(settings, dict) else ((key, s) for s in settings)
        for name, value in named:
            refuse_foreign(value, key if _CODE.search(key) else name)
    elif _CODE.search(key) and not re.fullmatch(r"\w+", str(settings)):
        raise ValueError(f"{key} = {settings!r} would be code of somebody else")


BUILDERS = {"timm": _build_timm, "transformers": _build_transformers}
READERS = {"timm": _read_timm, "transformers": transformers_recipe}
