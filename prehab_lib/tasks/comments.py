"""Embedded out-of-domain text: the comments in the source files of the standard library, split as
its documentation is.
"""

import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prehab_lib.tasks import sources
from prehab_lib.tasks.prose import PARTS, part_of

LEAST_WORDS = 4  # shorter comments are labels

_NO_TEXT = re.compile(
    r"[\W_]*|!.*|-\*-.*|(type|noqa|pragma|pylint|fmt|vim?|Local variables)\b.*", re.IGNORECASE
)


@cache
def comments(part: str) -> tuple[str, ...]:
    """Comments that fill whole lines, adjoining lines as one text, in the order of modules and
    lines.

    part: "train", "validation" or "test", by `prose.part_of` the module.  Raises ValueError for an
    unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part = {part!r} is not known: choose one of {', '.join(PARTS)}")
    return tuple(sources.read_once("comments", _blocks, lambda module: part_of(module) == part))


def _blocks(file: Path, parts: tuple[str, ...] = ()) -> Iterator[str]:
    block, last = [], -1
    for line, text in [*_lines(file), (-1, "")]:
        if (line != last + 1 or _NO_TEXT.fullmatch(text)) and block:
            text_of_block = "\n".join(block)
            if len(text_of_block.split()) >= LEAST_WORDS:
                yield text_of_block
            block = []
        if not _NO_TEXT.fullmatch(text):
            block.append(text)
        last = line


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of every comment that has its line for itself."""
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                yield token.start[0], token.string.lstrip("#").rstrip().removeprefix(" ")
