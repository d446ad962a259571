"""`check("1.2", answer)`: whether a student's answer is right, and which slip it looks like.

It never raises for what a student wrote, which would stop *Run all*. In a student's copy answer
keys, ex07.json, take the place of solutions, ex07.yaml (course/build.py).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prehab_lib import exercises
from prehab_lib.exercises import Exercise, answers
from prehab_lib.exercises.answers import Answered, decode
from prehab_lib.progress import say

PASSED = "passed"


@dataclass(frozen=True)
class AnswerKey:
    """wanted: an answer a case; slips: (an answer a case, hint) of each planted slip."""

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
        """PASSED, the hint of a slip (by the answers up to a stop), the trouble, a wrong case."""
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
    """Prints "exercise 1.2: not tried yet", "passed", or a hint; ValueError for an unknown id."""
    key = find(id)
    given = answers.collect(function, key.cases)
    say(f"exercise {id}: {key.judge(given, answers.name_of(function))}")


def find(id: str) -> AnswerKey:
    """The answer key behind an id, from the one file that can hold it; ValueError lists all ids."""
    if not isinstance(id, str):
        raise ValueError(f'write the id as text, check("{str(id)[:20]}", ...)')
    number = id.partition(".")[0]
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
    """ex00 -> the file of its exercises: answers (.json) in a student's copy, else solutions."""
    folder = Path(__file__).parent
    files = [*folder.glob("ex[0-9][0-9].json"), *folder.glob("ex[0-9][0-9].yaml")]
    return {file.stem: file for file in files}


def _keys(file: Path) -> dict[str, Exercise] | dict[str, AnswerKey]:
    if file.suffix == ".json":
        return read(file)
    return exercises.numbered(file.stem)


def read(file: Path) -> dict[str, AnswerKey]:
    """The answer keys that course/build.py wrote, by id."""
    keys = {}
    for id, key in json.loads(file.read_text(encoding="utf-8")).items():
        keys[id] = AnswerKey(**{name: decode(part) for name, part in key.items()})
    return keys
