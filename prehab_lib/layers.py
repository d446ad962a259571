"""Which layers are compressed: names in, modules out."""

import re
from collections.abc import Callable, Iterable, Mapping

from torch import nn

_GATED_DECODER = r"(.*\.)?layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_BERT = (
    r"(.*\.)?encoder\.layer\.\d+\."
    r"(attention\.(self\.(query|key|value)|output\.dense)|(intermediate|output)\.dense)"
)
_DISTILBERT = r"(.*\.)?transformer\.layer\.\d+\.(attention\.([qkv]|out)_lin|ffn\.lin[12])"

# Class name of the model, or of a base class of it -> full match on the module's name.
# Embeddings, norms, language-model heads and text classifiers stay; the papers compress the ViT's
# classifier head too. A fused query-key-value matrix counts as one layer, or as its three parts
# after `rewrite.split_qkv`.
DEFAULT_LAYERS = {
    "VisionTransformer": r"blocks\.\d+\.(attn\.(qkv(\.[qkv])?|proj)|mlp\.fc(1|2|1_[gx]))|head",
    "BertPreTrainedModel": _BERT,
    "RobertaPreTrainedModel": _BERT,
    "ElectraPreTrainedModel": _BERT,
    "DistilBertPreTrainedModel": _DISTILBERT,
    "LlamaPreTrainedModel": _GATED_DECODER,
    "MistralPreTrainedModel": _GATED_DECODER,
    "Qwen2PreTrainedModel": _GATED_DECODER,
    "Qwen3PreTrainedModel": _GATED_DECODER,
    "OPTPreTrainedModel": r"(.*\.)?layers\.\d+\.(self_attn\.([qkv]|out)_proj|fc[12])",
    "GPT2PreTrainedModel": r"(.*\.)?h\.\d+\.(attn\.c_(attn(\.[qkv])?|proj)|mlp\.c_(fc|proj))",
}

# Class of a module that is no dense nn.Linear -> what to do about it.
REMEDIES = {
    "Conv1D": "call prehab_lib.save.rewrite.to_linear(model) first",
    "FalconLinear": "call prehab_lib.save.rewrite.to_linear(model) first",
    "SplitQKV": "name its parts, which end in .q, .k and .v",
    "LowRankLinear": "has the model been compressed already?",
    "PackedLinear": "it is in 8 bits, and quantising comes last",
}
CUT = ("LowRankLinear", "PackedLinear")  # what has taken a layer's place; by name


def default_layers(model: nn.Module) -> list[str]:
    """The layers that the papers compress in this family; every `nn.Linear` of an unknown one.

    A wrapper (DataParallel, torch.compile, one's own) may hold models of known families.  Raises
    ValueError where there is none, or for what `rewrite.to_linear` replaces (GPT-2, Falcon).
    """
    modules = dict(model.named_modules())
    refuse_adapters(modules)
    _refuse_not_dense(modules, [name for name, module in modules.items() if is_own_linear(module)])
    patterns: dict[str, str] = {}  # prefix of the names in a known model -> its pattern
    for name, part in modules.items():  # whatever holds a part comes before it
        pattern = of_family(part, DEFAULT_LAYERS)
        if pattern and not name.startswith(tuple(patterns)):
            patterns[f"{name}." if name else ""] = pattern
    asked = [part for part in modules.values() if hasattr(part, "get_output_embeddings")]
    heads = [part.get_output_embeddings() for part in asked]
    inside = tuple(f"{name}." for name, part in modules.items() if type(part).__name__ in CUT)
    linear = [name for name, part in modules.items() if is_linear(part) and part not in heads]
    linear = [name for name in linear if not name.startswith(inside)]
    names = [name for name in linear if _is_default(name, patterns)]
    if not names:
        kinds = {type(part).__name__ for part in modules.values() if isinstance(part, nn.Linear)}
        own = [f"and {kind} has a forward of its own" for kind in sorted(kinds - {"Linear"})]
        reason = ", ".join(["only nn.Linear can be factorised", *own])
        if linear:
            reason = "none of its nn.Linear has a name known for this family"
        if inside:
            reason = "has the model been compressed already?"
        problem = f"{type(model).__name__} has no linear layer to compress: {reason}"
        remedy = "; name the layers yourself with layers=[...]" if linear else ""
        raise ValueError(problem + remedy)
    return names


def linear_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, nn.Linear]:
    """name -> `nn.Linear` for the layers named, or for `default_layers`.

    Raises ValueError naming what is missing, no dense linear layer, or shares its weight.
    """
    names = default_layers(model) if layers is None else list(layers)
    if not names:
        remedy = "name at least one layer, or leave it out for the model's default"
        raise ValueError(f"layers is empty: {remedy}")
    modules = dict(model.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown:
        count = f"of {len(unknown)} unknown names"
        raise ValueError(f"{type(model).__name__} has no module named {unknown[0]!r} ({count})")
    refuse_adapters({name: modules[name] for name in names})
    _refuse_not_dense(modules, names)
    if "" in names:
        raise ValueError("the model is one layer by itself: pass nn.Sequential(model) instead")
    refuse_tied_weights(model, names)
    return {name: modules[name] for name in names}


def _is_default(name: str, patterns: Mapping[str, str]) -> bool:
    prefix = next((prefix for prefix in patterns if name.startswith(prefix)), None)
    return prefix is None or bool(re.fullmatch(patterns[prefix], name.removeprefix(prefix)))


def refuse_adapters(modules: Mapping[str, nn.Module]) -> None:
    """Raises ValueError naming the first layer that one of peft's adapters wraps."""
    for name, module in modules.items():
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            raise ValueError(f"layer {name!r} has adapters: call merge_and_unload() first")


def is_linear(module: nn.Module) -> bool:
    """True for `nn.Linear` with a plain weight, not for subclasses that store it another way."""
    parametrized = nn.utils.parametrize.is_parametrized(module, "weight")
    return type(module) is nn.Linear or (isinstance(module, nn.Linear) and parametrized)


def is_conv1d(module: nn.Module) -> bool:
    """True for transformers' `Conv1D` (GPT-2): y = x W + b, W (n, m), `nn.Linear`'s transpose."""
    kind = type(module)  # by name: whoever has no such layer need not import transformers
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D")


def is_own_linear(module: nn.Module) -> bool:
    """True for what transformers has in the place of `nn.Linear`: `Conv1D`, or Falcon's layer."""
    falcon = ("transformers.models.falcon.modeling_falcon", "FalconLinear")
    return is_conv1d(module) or (type(module).__module__, type(module).__name__) == falcon


def of_family(model: nn.Module, table: dict[str, str]) -> str | None:
    """The entry of `table` for the model's class or its nearest base class by name, or None."""
    return next((table[c.__name__] for c in type(model).__mro__ if c.__name__ in table), None)


# Called with a model after each change of a layer: `save` gives it the class that saves it right.
REPLACED: list[Callable[[nn.Module], None]] = []


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `model` has `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
    for notify in REPLACED:
        notify(model)


def refuse_tied_weights(model: nn.Module, names: Iterable[str]) -> None:
    """Raises ValueError naming the first of `names` whose weight another module owns too."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    for name in names:
        shared = owners.get(id(model.get_submodule(name).weight), set()) - {f"{name}.weight"}
        if shared:
            problem = f"{name!r} shares its weight with {sorted(shared)[0]!r}"
            remedy = "untie it or leave it out"
            raise ValueError(f"{problem}: a tied layer cannot be changed alone, {remedy}")


def refuse_packed(modules: Mapping[str, nn.Module], what: str) -> None:
    """Raises ValueError naming the first layer in 8 bits.  what: the step that comes before."""
    for name, module in modules.items():
        if any(type(part).__name__ == "PackedLinear" for part in module.modules()):  # by name
            problem = f"layer {name!r} is in 8 bits, which nothing can train"
            raise ValueError(f"{problem}: {what} first, quantise afterwards")


def _refuse_not_dense(modules: dict[str, nn.Module], names: list[str]) -> None:
    wrong = [name for name in names if not is_linear(modules[name])]
    if wrong:
        kind = type(modules[wrong[0]]).__name__
        remedy = f"{REMEDIES.get(kind, 'leave it out')} ({len(wrong)} such in all)"
        raise ValueError(f"{wrong[0]!r} is a {kind}, not a dense nn.Linear: {remedy}")
