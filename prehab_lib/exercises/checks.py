"""`check("1.2", answer)`: tells a student whether an answer is right, and which slip a wrong one
looks like.

It prints one line and never raises for what a student wrote, so an unfinished exercise does not
stop *Run all*. What it compares with is an answer key: everything a check needs and no line of a
solution. Students get it as a file: exercises/ex07.json takes the place of ex07.py and ex07.yaml in
their copy of the library (course/build.py).
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prehab_lib import exercises
from prehab_lib.exercises import Exercise, answers
from prehab_lib.exercises.answers import Answered, decode, encode

FORMAT = 2
PASSED = "passed"


@dataclass(frozen=True)
class AnswerKey:
    """`cases`: tuples of arguments; `wanted`: an answer a case; `slips`: (an answer a case, hint)
    of each planted slip.
    """

    cases: list[tuple]
    wanted: list
    slips: list[tuple[list, str]]

    @classmethod
    def of(cls, exercise: Exercise, withheld: bool = False) -> "AnswerKey":
        """Computed from the solution and the slips; on the withheld cases too where asked."""
        cases = exercise.cases + (exercise.withheld if withheld else [])
        slips = [(answers.collect(slip, cases).answers, hint) for slip, hint in exercise.slips]
        return cls(cases, answers.collect(exercise.solution, cases).answers, slips)

    def judge(self, given: Answered, name: str = "f") -> str:
        """PASSED, UNTRIED, the hint of the slip, what stopped the function, or the first case that
        differs.

        A function that stopped at some case has made a slip where its answers up to there are that
        slip's. name: how the function is called in what is said.
        """
        count = len(given.answers)
        pairs = zip(given.answers, self.wanted[:count], strict=True)
        wrong = [i for i, pair in enumerate(pairs) if not answers.same(*pair)]
        if not wrong:
            return given.trouble or PASSED
        for slip, hint in self.slips:
            if answers.same(given.answers, slip[:count] if given.trouble else slip):
                return hint
        if given.trouble:
            return given.trouble
        first = wrong[0]
        ours, theirs = answers.short(given.answers[first]), answers.short(self.wanted[first])
        return f"not yet: {answers.call(name, self.cases[first])} gives {ours}, wanted {theirs}"


def check(id: str, function: Callable) -> None:
    """Prints "exercise 1.2: not tried yet", "passed", or a hint.

    An untried stub has nothing but a docstring and ... in it (or pass, or raise
    NotImplementedError).  Raises ValueError for an id that is not known.
    """
    key = find(id)
    given = answers.collect(function, key.cases)
    print(f"exercise {id}: {key.judge(given, answers.name_of(function))}")


def find(id: str) -> AnswerKey:
    """The answer key behind an id.  Opens the one file that can hold it; raises ValueError that
    lists the known ids.
    """
    number = str(id).partition(".")[0]
    file = _files().get(f"ex{number:0>2}")
    keys = _keys(file) if file else {}
    if id not in keys:
        raise ValueError(f"exercise {id!r} is not known: choose one of {', '.join(known())}")
    return AnswerKey.of(keys[id]) if isinstance(keys[id], Exercise) else keys[id]


def known() -> list[str]:
    """All ids, in the order of the book."""
    ids = [id for file in _files().values() for id in _keys(file)]
    return sorted(ids, key=lambda id: [*map(int, id.split("."))])


def _files() -> dict[str, Path]:
    """ex00 -> the file of its exercises.  A student's copy has answers (.json) where this one has
    solutions (.py).
    """
    folder = Path(__file__).parent
    files = [*folder.glob("ex[0-9][0-9].json"), *folder.glob("ex[0-9][0-9].py")]
    return {file.stem: file for file in files}


def _keys(file: Path) -> dict[str, Exercise] | dict[str, AnswerKey]:
    if file.suffix == ".json":
        return read(file)
    return importlib.import_module(f"{exercises.__name__}.{file.stem}").EXERCISES


def write(keys: dict[str, AnswerKey], file: Path) -> None:
    """Keys by id, as one JSON file."""
    content = {
        id: {name: encode(part) for name, part in vars(key).items()} for id, key in keys.items()
    }
    text = json.dumps({"format": FORMAT, "exercises": content}, ensure_ascii=False, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, AnswerKey]:
    """What `write` wrote.  Raises ValueError for a file of another format."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        return {
            id: AnswerKey(**{name: decode(part) for name, part in key.items()})
            for id, key in content["exercises"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file.name} is no file of exercises ({error}): take a fresh copy of it"
        ) from None
