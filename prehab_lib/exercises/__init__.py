"""The exercises of the notebooks, one file a notebook: ex01.py holds those of 01, as EXERCISES =
{"1.1": Exercise(...)}.
"""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CALL = re.compile(r"""^check\(["'](\d+\.\d+)["'], (\w+)\)""", re.MULTILINE)


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


def solved(id: str) -> Exercise:
    """The exercise with its solution; ModuleNotFoundError in a student's copy, which has none."""
    number = id.partition(".")[0]
    return importlib.import_module(f"{__name__}.ex{number:0>2}").EXERCISES[id]


def asked_in(notebook: Path) -> dict[str, str]:
    """Exercise -> name of the function that is asked for, by the notebook's `check` calls."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return {id: name for source in code for id, name in CALL.findall(source)}
