"""What a parameter's value must be beyond its type: RULES, a pydantic type for each name."""

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, FiniteFloat, with_config
from typing_extensions import TypedDict  # pydantic refuses that of typing below Python 3.12

LIBRARY = Path(__file__).resolve().parents[1]


def table_keys(module: str, table: str) -> tuple[str, ...]:
    """Keys of a module's dictionary, from its source unless it is loaded: imports cost seconds."""
    name = f"prehab_lib.{module}"
    if name in sys.modules:
        return tuple(getattr(sys.modules[name], table))
    source = LIBRARY.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == table:
            return tuple(ast.literal_eval(key) for key in node.value.keys)
    raise LookupError(f"{name} has no dictionary {table}")


def _key_of(*tables: tuple[str, str]):
    """Text that is a key of one of these tables, each given as (module, name)."""

    def check(value: str) -> str:
        known = [key for module, table in tables for key in table_keys(module, table)]
        if value not in known:
            raise ValueError(f"choose from {', '.join(known)}")
        return value

    return Annotated[str, AfterValidator(check)]


def _each(kind):
    """A list of this kind with at least one value."""
    return Annotated[list[kind], Field(min_length=1)]


def _one_or_each(kind):
    """A single value of this kind, or a list with at least one."""
    as_list = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
    return Annotated[_each(kind), as_list]


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("a seed stands twice, and would pass for two runs that agree")
    return values


_count = Annotated[int, Field(ge=1)]
_seed = Annotated[int, Field(ge=-(2**32), le=2**32)]  # what is drawn adds to it, within 64 bits
_steps = Annotated[int, Field(ge=0)]
_fraction = Annotated[FiniteFloat, Field(gt=0, lt=1)]
_positive = Annotated[FiniteFloat, Field(gt=0)]
_weight = Annotated[FiniteFloat, Field(ge=0)]  # λ of Eq. (2)
_method = _key_of(("methods", "METHODS"))
_surrogate = _key_of(("surrogates", "SURROGATES"))
_order = Literal["UV", "VU", "joint"]


def _entries(optional: dict, **required):
    """A mapping with these entries and no others."""
    kinds = required | {name: NotRequired[kind] for name, kind in optional.items()}
    return with_config(ConfigDict(extra="forbid"))(TypedDict("entries", kinds))


_lora = {"alpha": _positive, "dropout": _weight, "warmup": _steps, "decay": bool}
_lora |= {"accumulate": _count}
_gates = {"steps": _count, "lr": _positive, "beta": _each(_positive), "seed": _seed}
_gates |= {"weight_of_budget": _positive | None, "accounting": str}
_memory = {"compute": Literal["float32", "bfloat16"] | None, "gradient_checkpointing": bool}
_memory |= {"optimizer": _key_of(("precision", "OPTIMIZERS")), "roots_on": Literal["device", "cpu"]}
_memory |= {"rank_dtype": Literal["float64", "float32"] | None}
_shape = dict.fromkeys(("width", "mlp", "heads", "tokens", "batch", "blocks"), _count)


# Patterns are tried from top to bottom, the first that matches the parameter's name decides.
RULES = {
    "removed": _one_or_each(_fraction),
    "curve": _each(_fraction),
    "lam": _one_or_each(_weight),
    "*lams": _each(_weight),
    "method": _method,
    "methods": _each(_method),
    "surrogate": _surrogate,
    "surrogates": _each(_surrogate),
    "others": dict[_surrogate, _weight],  # further arms: surrogate -> its λ
    "coordinates": _one_or_each(Literal["weight", "whitened"]),
    "order": _order,
    "orders": _each(_order),
    "reduction": Literal["sum", "mean"],
    "arithmetic": Literal["exact", "fast"],
    "schedule": Literal["constant", "geometric"],
    "task": _key_of(("tasks.prose_tasks", "PROSE"), ("tasks.glue", "GLUE")),
    "lora": _entries(_lora, rank=_count, steps=_steps, lr=_positive),
    "gates": _entries(_gates),
    "large": _entries(_memory),
    "vit": _entries({}, **_shape),
    "bert": _entries({}, **_shape),
    "block": _entries({}, hidden=_count, mlp=_count),
    "seed": _seed,
    "seeds": Annotated[_each(_seed), AfterValidator(_distinct)],
    "batch": _count,
    "calibration": _count,
    "kronecker": _count,
    "window": Annotated[int, Field(ge=2)],
    "lr": _positive,
    "lrs": _each(_positive),
    "*steps": _one_or_each(_steps),
}


def kind(name: str):
    """The pydantic type that a parameter's value must have by its name; Any without a rule."""
    return next((rule for pattern, rule in RULES.items() if fnmatchcase(name, pattern)), Any)
