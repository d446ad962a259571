"""The exercises of 01 are in ex01.yaml: cases, hints, and formulas with their functions."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean

import yaml


@dataclass(frozen=True)
class Exercise:
    """withheld: cases for grading, in no student's copy. slips: wrong answers, each with a hint."""

    cases: list[tuple]
    solution: Callable
    slips: list[tuple[Callable, str]]
    withheld: list[tuple] = field(default_factory=list)


@cache
def numbered(name: str) -> dict[str, Exercise]:
    """Those of "ex01", by id; FileNotFoundError in a student's copy, which has none."""
    file = Path(__file__).with_name(f"{name}.yaml")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = {"math": math, "fmean": fmean, "tensors": tensors}
    exec(compile(content.pop("functions"), file, "exec"), names)
    return {id: _exercise(names, **entry) for id, entry in content.items()}


def _exercise(names: dict, of: str, cases, withheld, solution: str, slips, case="") -> Exercise:
    def function(formula: str) -> Callable:
        return eval(f"lambda {of}: ({formula})", names)  # a file of this package, like its code

    if case:
        made = function(case)
        cases, withheld = ([made(*one) for one in kind] for kind in (cases, withheld))
    hints = [(function(slip["gives"]), slip["hint"]) for slip in slips.values()]
    return Exercise(list(map(tuple, cases)), function(solution), hints, list(map(tuple, withheld)))


def tensors(*case) -> list:
    """The arguments of a case, its lists as tensors in double precision."""
    import torch

    return [torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for v in case]


def solved(id: str) -> Exercise:
    """The exercise with its solution; raises as `numbered`."""
    number = id.partition(".")[0]
    return numbered(f"ex{number:0>2}")[id]
