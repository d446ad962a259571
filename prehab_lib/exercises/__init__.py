"""The exercises of 01: ex01.yaml has cases and hints, ex01.py solutions and usual slips."""

import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

CALL = re.compile(r"""^check\(["'](\d+\.\d+)["'], (\w+)\)""", re.MULTILINE)


@dataclass(frozen=True)
class Exercise:
    """withheld: cases for grading, in no student's copy. slips: wrong answers, each with a hint."""

    cases: list[tuple]
    solution: Callable
    slips: list[tuple[Callable, str]]
    withheld: list[tuple] = field(default_factory=list)


def load(file: str, functions: dict[str, dict[str, Callable]]) -> dict[str, Exercise]:
    """The exercises of a data file of this folder, by id, with their functions.

    functions: of each exercise the `solution`, each slip by name, and `arguments` where YAML cannot
    say those of a case. Raises ValueError where file and functions differ in exercises or slips.
    """
    content = yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    if differing := sorted(content.keys() ^ functions.keys()):
        raise ValueError(f"{file} and its functions differ in exercise {', '.join(differing)}")
    return {id: _exercise(id, content[id], **functions[id]) for id in content}


def _exercise(id: str, content: dict, solution: Callable, arguments=None, **slips) -> Exercise:
    if differing := sorted(content["slips"].keys() ^ slips.keys()):
        raise ValueError(f"hints and functions of exercise {id} differ in {', '.join(differing)}")
    cases, withheld = content["cases"], content["withheld"]
    if arguments is not None:
        cases, withheld = ([arguments(*case) for case in kind] for kind in (cases, withheld))
    hints = [(slips[name], hint) for name, hint in content["slips"].items()]
    return Exercise(list(map(tuple, cases)), solution, hints, list(map(tuple, withheld)))


def tensors(*case) -> list:
    """The arguments of a case, its lists as tensors in double precision."""
    import torch

    return [torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v for v in case]


def solved(id: str) -> Exercise:
    """The exercise with its solution; ModuleNotFoundError in a student's copy, which has none."""
    number = id.partition(".")[0]
    return importlib.import_module(f"{__name__}.ex{number:0>2}").EXERCISES[id]


def asked_in(notebook: Path) -> dict[str, str]:
    """Exercise -> name of the function that is asked for, by the notebook's `check` calls."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return {id: name for source in code for id, name in CALL.findall(source)}
