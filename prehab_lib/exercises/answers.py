"""What a student's function answers, as plain lists and numbers; when two answers agree; JSON.

What JSON lacks (tuples, tensors, nan) is tagged. Unlike pickle, reading it only makes values.
"""

import copy
import dis
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real

UNTRIED = "not tried yet"
NOTHING = "it returns nothing: is a return missing?"
# Of a body that is ..., pass, a constant, or raise NotImplementedError, in Python 3.11 to 3.14.
BLANK = {"RESUME", "NOP", "CACHE", "COPY_FREE_VARS", "POP_TOP", "PUSH_NULL", "PRECALL", "CALL"}
BLANK |= {"LOAD_CONST", "LOAD_SMALL_INT", "LOAD_COMMON_CONSTANT", "LOAD_GLOBAL", "LOAD_NAME"}
BLANK |= {"RETURN_CONST", "RETURN_VALUE", "RAISE_VARARGS"}


@dataclass(frozen=True)
class Answered:
    """The answers to all cases, or to those before the `trouble`: UNTRIED, NOTHING, or an error."""

    answers: list
    trouble: str | None = None


def collect(function: Callable, cases: list[tuple], name: str | None = None) -> Answered:
    """Call the function on a copy of each case, and never raise for what it does.

    UNTRIED where its body is `blank`, NOTHING where it returns nothing. name: its name in errors.
    """
    if not callable(function):
        return Answered([], "hand over the function itself, without calling it")
    answers = []
    for case in cases:
        try:
            answers.append(plain(function(*copy.deepcopy(case))))
        except (Exception, SystemExit) as error:
            if isinstance(error, NotImplementedError) and blank(function):
                return Answered([], UNTRIED)
            words = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            where = call(name or name_of(function), case)
            return Answered(answers, f"{where} stopped with {words}")
    if all(answer is None or answer is ... for answer in answers):
        return Answered([], UNTRIED if blank(function) else NOTHING)
    return Answered(answers)


def blank(function: Callable) -> bool:
    """Whether its code does nothing; true too where there is no code to look at."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return True
    used = {instruction.opname for instruction in dis.get_instructions(code)}
    return set(code.co_names) <= {"NotImplementedError"} and used <= BLANK


def name_of(function: Callable) -> str:
    """As its author called it; f for a lambda and for what has no name."""
    name = str(getattr(function, "__name__", ""))
    return name if name.isidentifier() else "f"


def call(name: str, case: tuple) -> str:
    """The call that a case stands for, in one line: rank_in_budget(768, 768, 0.4)."""
    return f"{name}({', '.join(map(_argument, case))})"


def _argument(value) -> str:
    """An argument as `short` has it, or its kind and size where that is long."""
    text = short(plain(value))
    if len(text) <= 50:
        return text
    if hasattr(value, "shape"):
        return f"{type(value).__name__} {' × '.join(map(str, value.shape))}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else text


def plain(value):
    """Tensors and arrays become nested lists and numbers: an answer may be given in any of them."""
    if hasattr(value, "detach"):
        value = value.detach()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (Real, Decimal)) and not isinstance(value, (int, float)):
        return float(value)  # a Fraction, for example
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
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
    try:
        return " ".join(repr(value).split())[:60]
    except Exception:  # of a class of the student's, or a number of thousands of digits
        return f"a value of type {type(value).__name__}"


def decode(value):
    """What JSON of course/ stands for; ValueError for anything else. Only a tensor needs torch."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("tuple", list(items))]:
            return tuple(map(decode, items))
        case [("dict", list(items))]:
            return {decode(key): decode(item) for key, item in items}
        case [("tensor", items), ("dtype", str(name))]:
            import torch

            return torch.tensor(decode(items), dtype=getattr(torch, name))
    raise ValueError(f"not an encoded value: {str(value)[:60]}")
