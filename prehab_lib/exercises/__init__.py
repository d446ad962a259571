"""The exercises of the notebooks, one file a notebook: ex01.py holds those of 01, as EXERCISES =
{"1.1": Exercise(...)}.
"""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    `cases`: tuples of arguments the answer is tried on.  `withheld`: further ones for grading,
    which are in no student's copy, so an answer written for the known cases alone does not pass.
    `solution`: a right answer.  `slips`: wrong answers one is likely to give, each with the hint
    that names the mistake.
    """

    cases: list[tuple]
    solution: Callable
    slips: list[tuple[Callable, str]]
    withheld: list[tuple] = field(default_factory=list)


def slips(*answers_and_hints: Callable | str) -> list[tuple[Callable, str]]:
    """Slips in the order they are read in: a wrong answer, then its hint, then the next."""
    return list(zip(answers_and_hints[::2], answers_and_hints[1::2], strict=True))
