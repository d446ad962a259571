"""The answer key of an exercise: its cases with the wanted answers, and the answers of the usual
slips with their hints.

Everything a check needs and no line of a solution, so students can be given it as a file:
exercises/ex07.json takes the place of exercises/ex07.py in their copy of the library
(`course_build`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

from prehab_lib.exercises import Exercise, answers
from prehab_lib.exercises.answers import UNTRIED, Answered
from prehab_lib.exercises.coding import decode, encode

FORMAT = 1
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
        """Answers of the solution and of the slips; on the withheld cases too where asked."""
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


def write(keys: dict[str, AnswerKey], file: Path) -> None:
    """Keys by id, as one JSON file."""
    content = {
        id: {
            "cases": [encode(list(case)) for case in key.cases],
            "wanted": encode(key.wanted),
            "slips": [{"hint": hint, "answers": encode(slip)} for slip, hint in key.slips],
        }
        for id, key in keys.items()
    }
    text = json.dumps({"format": FORMAT, "exercises": content}, ensure_ascii=False, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def read(file: Path) -> dict[str, AnswerKey]:
    """What `write` wrote.  Raises ValueError for a file of another format."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT}")
        return {id: _key(item) for id, item in content["exercises"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file.name} is no file of exercises ({error}): take a fresh copy of it"
        ) from None


def _key(item: dict) -> AnswerKey:
    slips = [(decode(slip["answers"]), slip["hint"]) for slip in item["slips"]]
    return AnswerKey([tuple(decode(case)) for case in item["cases"]], decode(item["wanted"]), slips)


__all__ = ["PASSED", "UNTRIED", "AnswerKey", "read", "write"]
