"""Embedded instructions: what a documented function of the standard library does, by the first
sentence of its docstring.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache

from prehab_lib.tasks import sources
from prehab_lib.tasks.prose import PARTS, part_of

WORDS = (3, 40)  # shortest and longest answer

_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)


@cache
def questions(part: str) -> list[tuple[str, str]]:
    """(question, answer) of every documented function and method of a part's modules, in the order
    of the files.

    Split by module as `prose` is; an answer that the training part has as well is left out
    elsewhere.
    Raises ValueError for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part = {part!r} is not known: choose one of {', '.join(PARTS)}")
    earlier = {answer for _, answer in questions("train")} if part != "train" else set()
    own = (entry for entry in sources.entries() if part_of(entry.module) == part)
    return list(
        {question: answer for question, answer in _asked(own) if answer not in earlier}.items()
    )


def _asked(entries: Iterable[sources.Entry]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        answer = _first_sentence(entry.text)
        if entry.arguments is not None and WORDS[0] <= len(answer.split()) <= WORDS[1]:
            yield f"What does {entry.name}({entry.arguments}) do?\n", answer


def _first_sentence(text: str) -> str:
    """Of the first paragraph, on one line; all of it where no sentence ends there."""
    paragraph = " ".join(re.split(r"\n[ \t]*\n", text)[0].split())
    found = _SENTENCE.match(paragraph)
    return found[1] if found else paragraph
