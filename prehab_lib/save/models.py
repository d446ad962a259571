"""Models in: by hub name, by local folder, small ones built here; and the recipe that builds the
same skeleton again.
"""

import inspect
import os
from pathlib import Path

import torch
from torch import nn

from prehab_lib.save.hub import explained
from prehab_lib.save.rewrite import to_linear


def small_vit(
    depth: int,
    width: int,
    heads: int,
    patch: int = 4,
    seed: int = 0,
    *,
    image_size: tuple[int, int] = (8, 16),
    channels: int = 1,
    classes: int = 100,
) -> nn.Module:
    """timm's VisionTransformer for small images, random weights from `seed`; the defaults suit the
    embedded digit pairs.
    """
    kwargs = dict(
        img_size=list(image_size), patch_size=patch, in_chans=channels, num_classes=classes
    )
    kwargs |= dict(embed_dim=width, depth=depth, num_heads=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build({"library": "timm", "class": "VisionTransformer", "kwargs": kwargs})


def image_model(source: str, *, pretrained: bool = True, **kwargs) -> nn.Module:
    """A timm model: a timm name with its tag ("vit_base_patch16_224.augreg2_in21k_ft_in1k"), or a
    local timm folder.

    kwargs go to `timm.create_model` (num_classes, img_size, …).  pretrained=False gives random
    weights.
    Raises ConnectionError, PermissionError, FileNotFoundError or ValueError with one sentence.
    """
    import timm

    name = source
    _check_folder(source)
    if os.path.isdir(source):
        if not (Path(source) / "config.json").is_file():
            raise FileNotFoundError(f"{source} is no timm model folder: it has no config.json")
        name = f"local-dir:{Path(source).resolve()}"
    elif "/" not in source and not timm.is_model(source.split(".")[0]):
        raise ValueError(
            f"model = {source!r} is neither a folder nor a model timm knows: see timm.list_models()"
        )
    with explained(f"the model {source!r}", remedy="give the folder of a local copy instead"):
        model = timm.create_model(name, pretrained=pretrained, **kwargs)
    if name == source and "/" not in source:
        model.prehab_recipe = {"library": "timm", "name": source.split(".")[0], "kwargs": kwargs}
    return model


def text_model(source: str, auto_class: str, **kwargs) -> nn.Module:
    """A transformers model: `getattr(transformers, auto_class).from_pretrained(source)`, from the
    hub or a local folder.

    Safetensors only, no remote code; GPT-2's transposed `Conv1D` layers become `nn.Linear`
    (`rewrite.to_linear`). Raises as `image_model` does.
    """
    import transformers

    _check_folder(source)
    with explained(f"the model {source!r}", remedy="give the folder of a local copy instead"):
        loader = getattr(transformers, auto_class)
        model = loader.from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, **kwargs
        )
    to_linear(model)
    return model


def dense_config(source: str):
    """The configuration of a dense causal language model, without its weights.

    Raises ValueError for a compressed checkpoint and for another kind of model, else as
    `text_model` does.
    """
    from transformers import AutoConfig

    from prehab_lib.save.storage import DESCRIPTION

    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if (folder / DESCRIPTION).is_file():
            raise ValueError(_AGAIN.format(source))
        raise FileNotFoundError(f"{source} is no model folder: it has no config.json")
    _check_folder(source)
    with explained(f"the model {source!r}", "give the folder of a local copy instead"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    check_dense(config, source)
    kinds = config.architectures or []
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise ValueError(f"{source!r} is a {kinds[0]}: a causal language model is needed")
    return config


_AGAIN = "{!r} is compressed already: give the dense model it was made of"


def check_dense(config, source: str) -> None:
    """Raises ValueError where a configuration is that of a compressed model; whatever was saved
    with `merged` is dense.
    """
    from prehab_lib.save.pretrained import LowRankConfig

    if isinstance(config, LowRankConfig) and config.ranks:
        raise ValueError(_AGAIN.format(source))


def _check_folder(source: str) -> None:
    if source.startswith((".", "/", "~")) and not os.path.isdir(source):
        raise FileNotFoundError(f"model = {source!r} is no folder: check the path")


def build(recipe: dict) -> nn.Module:
    """The skeleton a recipe describes, with fresh weights.  Recipes name classes of timm and
    transformers only.

    Raises ValueError for a recipe of another kind.
    """
    if recipe.get("library") not in BUILDERS:
        raise ValueError(
            f"recipe of library {recipe.get('library')!r} is not known: choose one of {', '.join(BUILDERS)}"
        )
    model = BUILDERS[recipe["library"]](recipe)
    model.prehab_recipe = recipe
    return model


def recipe_of(model: nn.Module) -> dict:
    """What `build` needs for the same skeleton: the model's own `prehab_recipe`, or read off a timm
    or transformers model.

    Raises ValueError for a model of another kind.
    """
    if getattr(model, "prehab_recipe", None) is not None:
        return model.prehab_recipe
    for read in RECIPE_READERS:
        if (recipe := read(model)) is not None:
            return recipe
    raise ValueError(
        f"{type(model).__name__} is neither a timm nor a transformers model: set model.prehab_recipe to a recipe "
        "that prehab_lib.save.models.build understands before saving"
    )


def _build_timm(recipe: dict) -> nn.Module:
    import timm

    if unknown := [
        key for key in recipe["kwargs"] if key.startswith(("pretrained", "checkpoint", "cache"))
    ]:
        raise ValueError(f"a recipe builds an empty model: {unknown[0]!r} has no place in it")
    if "name" in recipe:
        if not timm.is_model(recipe["name"]):
            raise ValueError(f"recipe of timm model {recipe['name']!r} is not known")
        return timm.create_model(recipe["name"], pretrained=False, **recipe["kwargs"])
    if recipe["class"] != "VisionTransformer":
        raise ValueError(f"recipe of timm class {recipe['class']!r} is not known")
    return timm.models.VisionTransformer(**recipe["kwargs"])


def _build_transformers(recipe: dict) -> nn.Module:
    import transformers

    config = transformers.AutoConfig.for_model(**recipe["config"])
    config._attn_implementation = recipe["attention"]
    kind = getattr(transformers, recipe["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"recipe of transformers class {recipe['class']!r} is not known")
    return kind(config)


def _read_timm(model: nn.Module) -> dict | None:
    if not type(model).__module__.startswith("timm."):
        return None
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    shape = {"num_classes": model.num_classes}
    if hasattr(model, "patch_embed"):
        shape |= {
            "in_chans": model.patch_embed.proj.in_channels,
            "img_size": list(model.patch_embed.img_size),
        }
    if name:
        return {"library": "timm", "name": name, "kwargs": shape}
    if type(model).__name__ != "VisionTransformer":
        return None
    block = model.blocks[0]
    shape |= {
        "patch_size": list(model.patch_embed.patch_size),
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
    }
    shape |= {
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
    }
    shape |= {
        "qkv_bias": block.attn.qkv.bias is not None,
        "class_token": model.cls_token is not None,
    }
    plain = inspect.signature(type(model).__init__).parameters
    shape |= {
        name: getattr(model, name) for name in ("global_pool", "no_embed_class") if name in plain
    }
    return {"library": "timm", "class": "VisionTransformer", "kwargs": shape}


def _read_transformers(model: nn.Module) -> dict | None:
    if not type(model).__module__.startswith("transformers."):
        return None
    config = {
        k: v
        for k, v in model.config.to_dict().items()
        if k not in ("transformers_version", "architectures")
    }
    return {
        "library": "transformers",
        "class": type(model).__name__,
        "config": config,
        "attention": model.config._attn_implementation,
    }


BUILDERS = {"timm": _build_timm, "transformers": _build_transformers}
RECIPE_READERS = (_read_timm, _read_transformers)
