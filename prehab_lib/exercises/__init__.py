"""The exercises of the notebooks, one file a notebook: ex01.py holds those of 01, as EXERCISES = {"1.1": Exercise(...)}."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    `cases`: tuples of arguments the answer is tried on.  `solution`: a right answer.  `slips`: wrong answers one is likely
    to give, each with the hint that names the mistake.
    """

    cases: list[tuple]
    solution: Callable
    slips: list[tuple[Callable, str]]
