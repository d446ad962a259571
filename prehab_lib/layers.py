"""Which layers are compressed: names in, modules out."""

import re
from collections.abc import Iterable

from torch import nn

# Class name of the model, or of a base class of it -> full match on the module's name.
# Embeddings, norms and language-model heads stay; the papers compress the ViT's classifier head too.
DEFAULT_LAYERS = {
    "VisionTransformer": r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])|head",
    "BertPreTrainedModel": r"(.*\.)?encoder\.layer\.\d+\.(attention\.(self\.(query|key|value)|output\.dense)"
    r"|(intermediate|output)\.dense)",
    "LlamaPreTrainedModel": r"(.*\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
}


def default_layers(model: nn.Module) -> list[str]:
    """Names of the layers the papers compress in a model of this family; of every `nn.Linear` where the family is unknown.

    Raises ValueError where there is none.
    """
    pattern = next((DEFAULT_LAYERS[c.__name__] for c in type(model).__mro__ if c.__name__ in DEFAULT_LAYERS), ".*")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {name: module for name, module in model.named_modules() if is_linear(module) and module is not head}
    names = [name for name in linear if re.fullmatch(pattern, name)]
    if not names:
        raise ValueError(
            f"{type(model).__name__} has no linear layer to compress: only nn.Linear can be factorised; "
            "name the layers yourself with layers=[...]"
        )
    return names


def linear_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Linear]:
    """name -> `nn.Linear` for the layers named, or for `default_layers`.

    Raises ValueError that names what is missing, is no dense linear layer, or shares its weight with another module.
    """
    names = default_layers(model) if layers is None else list(layers)
    if not names:
        raise ValueError("layers is empty: name at least one layer, or leave it out for the model's default")
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        raise ValueError(f"{type(model).__name__} has no module named {unknown[0]!r} (of {len(unknown)} unknown names)")
    wrong = [name for name in names if not is_linear(modules[name])]
    if wrong:
        raise ValueError(
            f"{wrong[0]!r} is a {type(modules[wrong[0]]).__name__}, not a dense nn.Linear; has the model been compressed already?"
        )
    _refuse_tied_weights(model, names, modules)
    return {name: modules[name] for name in names}


def is_linear(module: nn.Module) -> bool:
    """True for `nn.Linear` with a plain 2-d weight (and not for subclasses that store it another way)."""
    return type(module) is nn.Linear or (isinstance(module, nn.Linear) and _is_parametrized(module))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `model` has `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _is_parametrized(module: nn.Module) -> bool:
    return nn.utils.parametrize.is_parametrized(module, "weight")


def _refuse_tied_weights(model: nn.Module, names: list[str], modules: dict[str, nn.Module]) -> None:
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    for name in names:
        shared = owners.get(id(modules[name].weight), set()) - {f"{name}.weight"}
        if shared:
            raise ValueError(
                f"{name!r} shares its weight with {sorted(shared)[0]!r}: a tied layer cannot be factorised alone, leave it out"
            )
