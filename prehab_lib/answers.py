"""What a student's function answers to an exercise's cases, as plain lists and numbers, and when two such answers agree."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

UNTRIED = "not tried yet"


@dataclass(frozen=True)
class Answered:
    """The answers to all cases; or, in `trouble`, why there are none: UNTRIED, or what stopped the function."""

    answers: list
    trouble: str | None = None


def collect(function: Callable, cases: list[tuple]) -> Answered:
    """Call the function on a copy of each case.  Never raises for what the function does, short of leaving the process.

    An untried stub returns nothing (or ...), or raises NotImplementedError.
    """
    if not callable(function):
        return Answered([], "hand over the function itself, without calling it")
    answers = []
    for number, case in enumerate(cases, 1):
        try:
            answers.append(plain(function(*copy.deepcopy(case))))
        except NotImplementedError:
            return Answered([], UNTRIED)
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return Answered([], f"stopped at case {number} with {words[:120]}")
    if all(answer is None or answer is ... for answer in answers):
        return Answered([], UNTRIED)
    return Answered(answers)


def plain(value):
    """Tensors and arrays become nested lists and numbers: an answer may be given in any of them."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def same(one, other) -> bool:
    """Equal, numbers to one part in 100,000: an answer in float32 is an answer."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        try:
            return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-8)
        except OverflowError:  # a whole number beyond the largest float
            return one == other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def short(value) -> str:
    """Readable in one line: numbers to five digits, long lists cut."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        shown = ", ".join(map(short, value[:6]))
        return f"[{shown}, ...]" if len(value) > 6 else f"[{shown}]"
    return " ".join(repr(value).split())[:60]
