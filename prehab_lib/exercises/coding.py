"""Arguments and answers of exercises as JSON: what JSON lacks (tuples, keys that are no text,
tensors, nan) is tagged.

No pickle: reading such a file can do nothing but make numbers.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Foreign:
    """Stands for a value of a type that cannot be written; equal to no answer."""

    shown: str

    def __eq__(self, other):
        return False

    def __hash__(self):
        return hash(self.shown)

    def __repr__(self):
        return self.shown


def encode(value, foreign: bool = False):
    """The value as JSON has it.  Raises TypeError for another type, or with `foreign` keeps the
    first of what it shows.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if type(value) is list:
        return [encode(item, foreign) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item, foreign) for item in value]}
    if type(value) is dict:
        return {
            "dict": [[encode(key, foreign), encode(item, foreign)] for key, item in value.items()]
        }
    if hasattr(value, "detach") and hasattr(value, "dtype"):
        return {"tensor": encode(value.tolist()), "dtype": str(value.dtype).removeprefix("torch.")}
    if foreign:
        return {"foreign": f"{type(value).__name__} {value!r}"[:60]}
    kinds = "numbers, text, lists, tuples, dicts, tensors"
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: use {kinds}")


def decode(value):
    """The inverse of `encode`.  Imports torch only where there is a tensor.  Raises ValueError for
    what it never writes.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"float": str(text), **rest} if not rest:
            return float(text)
        case {"tuple": list(items), **rest} if not rest:
            return tuple(map(decode, items))
        case {"dict": list(items), **rest} if not rest:
            return {decode(key): decode(item) for key, item in items}
        case {"tensor": items, "dtype": str(name), **rest} if not rest:
            import torch

            return torch.tensor(decode(items), dtype=getattr(torch, name))
        case {"foreign": str(shown), **rest} if not rest:
            return Foreign(shown)
    raise ValueError(f"not an encoded value: {str(value)[:60]}")
