"""`check("1.2", answer)`: tells a student whether an answer is right, and which slip a wrong one
looks like.

It prints one line and never raises for what a student wrote, so an unfinished exercise does not
stop *Run all*.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from prehab_lib import exercises
from prehab_lib.exercises import Exercise, answers
from prehab_lib.exercises.answer_key import AnswerKey, read

__all__ = ["AnswerKey", "Exercise", "check", "find", "known"]


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
    return sorted(
        (id for file in _files().values() for id in _keys(file)),
        key=lambda id: [*map(int, id.split("."))],
    )


def _files() -> dict[str, Path]:
    """ex00 -> the file of its exercises.  A student's copy has answers (.json) where this one has
    solutions (.py).
    """
    found = {}
    for folder in map(Path, exercises.__path__):
        for pattern in ("ex[0-9][0-9].json", "ex[0-9][0-9].py"):
            found |= {file.stem: file for file in sorted(folder.glob(pattern))}
    return dict(sorted(found.items()))


def _keys(file: Path) -> dict[str, Exercise] | dict[str, AnswerKey]:
    if file.suffix == ".json":
        return read(file)
    return importlib.import_module(f"{exercises.__name__}.{file.stem}").EXERCISES
