"""What a parameter's value must be, beyond its type: one table keyed by the parameter's name.

A rule is a function (name, value) -> None that raises ValueError with one clear sentence. A name
that is in no table has no rule beyond the type its notebook gives it.
"""

import ast
import importlib
import math
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path

from prehab_lib.budget import check_removed

Rule = Callable[[str, object], None]


def each(rule: Rule) -> Rule:
    """The rule for every item of a list with at least one item."""

    def check(name: str, value) -> None:
        if not isinstance(value, list) or not value:
            raise ValueError(f"{name} = {value!r}: give a list with at least one value")
        for item in value:
            rule(name, item)

    return check


def one_or_each(rule: Rule) -> Rule:
    """The rule for a single value, or for every item of a list."""
    return lambda name, value: (each(rule) if isinstance(value, list) else rule)(name, value)


def fraction_removed(name: str, value) -> None:
    try:
        check_removed(value)
    except ValueError as error:
        raise ValueError(str(error).replace("removed", name, 1)) from None


def coefficient(name: str, value) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"{name} = {value!r}: the rank weight λ must be a finite number, 0 or more"
        )


def whole(at_least: int | None = None) -> Rule:
    def check(name: str, value) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{name} = {value!r}: give a whole number")
        if at_least is not None and value < at_least:
            raise ValueError(f"{name} = {value!r}: give a whole number, {at_least} or more")

    return check


def text(name: str, value) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r}: give text")


def one_of(*known: str) -> Rule:
    return _choice(lambda: known)


def key_of(module: str, table: str) -> Rule:
    """The value is a key of a table of the library, for example METHODS in prehab_lib.methods."""
    return _choice(
        lambda: table_keys(module, table), lambda: tuple(getattr(_module(module), table))
    )


def _choice(
    known: Callable[[], Collection[str]], certain: Callable[[], Collection[str]] | None = None
) -> Rule:
    def check(name: str, value) -> None:
        if isinstance(value, str) and value in known():
            return
        names = (certain or known)()
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"{name} = {value!r} is not known: choose from {', '.join(names)}")

    return check


def settings(optional: dict[str, Rule], **rules: Rule) -> Rule:
    """A dictionary with these entries, each with its rule; the optional ones may be left out."""

    def check(name: str, value) -> None:
        if not isinstance(value, dict) or not set(rules) <= set(value) <= set(rules | optional):
            also = f", and if wanted {', '.join(optional)}" if optional else ""
            raise ValueError(f"{name} = {value!r}: give a dictionary with {', '.join(rules)}{also}")
        for key in value:
            (rules | optional)[key](f"{name}[{key!r}]", value[key])

    return check


def flag(name: str, value) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: give true or false")


def positive(name: str, value) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} = {value!r}: give a finite number above 0")


def weights_by_surrogate(name: str, value) -> None:
    """A dictionary surrogate -> its rank weight λ, which may be empty."""
    if not isinstance(value, dict):
        raise ValueError(
            f"{name} = {value!r}: give a dictionary surrogate -> λ, as {{nuclear: 0.1}}"
        )
    for surrogate, lam in value.items():
        _surrogate(name, surrogate)
        coefficient(f"{name}[{surrogate!r}]", lam)


def seeds(name: str, value) -> None:
    each(whole())(name, value)
    if twice := [seed for seed in value if value.count(seed) > 1]:
        raise ValueError(
            f"{name} = {value!r}: seed {twice[0]} stands twice, and would pass for two runs that agree"
        )


def _module(module: str):
    return importlib.import_module(f"prehab_lib.{module}")


def table_keys(module: str, table: str) -> tuple[str, ...]:
    """Keys of a dictionary written out in a module, read from its source: importing it costs
    seconds of torch.
    """
    tree = ast.parse(
        Path(__file__)
        .resolve()
        .parents[1]
        .joinpath(*module.split("."))
        .with_suffix(".py")
        .read_text(encoding="utf-8")
    )
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == table for target in targets):
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return tuple(
                key.value
                for key in keys
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
    return ()


_method, _surrogate = key_of("methods", "METHODS"), key_of("surrogates", "SURROGATES")
_sentence_task = _choice(
    lambda: (*table_keys("tasks.prose_tasks", "PROSE"), *table_keys("tasks.glue", "GLUE"))
)
_SCHEDULE = dict(
    alpha=positive,
    dropout=coefficient,
    warmup=whole(at_least=0),
    decay=flag,
    accumulate=whole(at_least=1),
)
_coordinates, _order = one_of("weight", "whitened"), one_of("UV", "VU", "joint")

# Patterns are tried from top to bottom, the first that matches the parameter's name decides.
RULES: dict[str, Rule] = {
    "removed": one_or_each(fraction_removed),
    "lam": one_or_each(coefficient),
    "*lams": each(coefficient),
    "method": _method,
    "methods": each(_method),
    "surrogate": _surrogate,
    "surrogates": each(_surrogate),
    "coordinates": one_or_each(_coordinates),
    "order": _order,
    "orders": each(_order),
    "reduction": one_of("mean", "sum"),
    "arithmetic": one_of("fast", "exact"),
    "schedule": one_of("constant", "geometric"),
    "task": _sentence_task,
    "lora": settings(_SCHEDULE, rank=whole(at_least=1), steps=whole(at_least=0), lr=positive),
    "seed": whole(),
    "seeds": seeds,
    "others": weights_by_surrogate,
    "batch": whole(at_least=1),
    "calibration": whole(at_least=1),
    "kronecker": whole(at_least=1),
    "window": whole(at_least=2),
    "lr": positive,
    "*steps": one_or_each(whole(at_least=0)),
    "data_root": text,
}


def apply(name: str, value) -> None:
    """Check one parameter by its rule, if it has one. Raises ValueError naming the parameter and
    the remedy.
    """
    rule = next((rule for pattern, rule in RULES.items() if fnmatchcase(name, pattern)), None)
    if rule is not None:
        rule(name, value)
