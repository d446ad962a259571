"""`check("1.2", answer)`: tells a student whether an answer is right, and which slip a wrong one looks like.

It prints one line and never raises for what a student wrote, so an unfinished exercise does not stop *Run all*.
"""

import copy
import importlib
import math
import pkgutil
from collections.abc import Callable

from prehab_lib import exercises
from prehab_lib.exercises import Exercise

__all__ = ["Exercise", "check", "find"]


def check(id: str, function: Callable) -> None:
    """Prints "exercise 1.2: not tried yet", "passed", or a hint.

    An untried stub returns nothing (or ...), or raises NotImplementedError.  Raises ValueError for an id that is not known.
    """
    print(f"exercise {id}: {_verdict(find(id), function)}")


def find(id: str) -> Exercise:
    """The exercise behind an id.  Raises ValueError that lists the known ids."""
    known = {}
    for module in pkgutil.iter_modules(exercises.__path__):
        known |= importlib.import_module(f"{exercises.__name__}.{module.name}").EXERCISES
    if id not in known:
        raise ValueError(f"exercise {id!r} is not known: choose one of {', '.join(sorted(known))}")
    return known[id]


def _verdict(exercise: Exercise, function: Callable) -> str:
    if not callable(function):
        return "hand over the function itself, without calling it"
    answers = []
    for number, case in enumerate(exercise.cases, 1):
        try:
            answers.append(_plain(function(*copy.deepcopy(case))))
        except NotImplementedError:
            return "not tried yet"
        except Exception as error:
            words = " ".join(f"{type(error).__name__}: {error}".split())
            return f"stopped at case {number} with {words[:120]}"
    if all(answer is None or answer is ... for answer in answers):
        return "not tried yet"
    wanted = _answers(exercise.solution, exercise.cases)
    wrong = [i for i in range(len(wanted)) if not _same(answers[i], wanted[i])]
    if not wrong:
        return "passed"
    for slip, hint in exercise.slips:
        if _same(answers, _answers(slip, exercise.cases)):
            return hint
    first = wrong[0]
    return f"not yet: case {first + 1} gives {_short(answers[first])}, wanted {_short(wanted[first])}"


def _answers(function: Callable, cases: list[tuple]) -> list:
    return [_plain(function(*copy.deepcopy(case))) for case in cases]


def _plain(value):
    """Tensors and arrays become nested lists and numbers: an answer may be given in any of them."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _same(one, other) -> bool:
    """Equal, numbers to one part in 100,000: an answer in float32 is an answer."""
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-8)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


def _short(value) -> str:
    """Readable in one line: numbers to five digits, long lists cut."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        shown = ", ".join(map(_short, value[:6]))
        return f"[{shown}, ...]" if len(value) > 6 else f"[{shown}]"
    return " ".join(repr(value).split())[:60]
