"""Embedded instructions: what a documented function of the standard library does, by the first sentence of its docstring."""

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prehab_lib.prose import PARTS, SKIPPED, part_of

WORDS = (3, 40)  # shortest and longest answer

_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)


@cache
def questions(part: str) -> list[tuple[str, str]]:
    """(question, answer) of every documented function and method of a part's modules, in the order of the files.

    Split by module as `prose` is; an answer that the training part has as well is left out elsewhere.
    Raises ValueError for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part = {part!r} is not known: choose one of {', '.join(PARTS)}")
    earlier = {answer for _, answer in questions("train")} if part != "train" else set()
    library = Path(sysconfig.get_path("stdlib"))
    names = [name for name in sorted(sys.stdlib_module_names - SKIPPED) if part_of(name) == part]
    files = [file for name in names for file in (library / f"{name}.py", *sorted((library / name).rglob("*.py")))]
    found: dict[str, str] = {}
    for file in files:
        parts = file.relative_to(library).with_suffix("").parts
        if file.is_file() and not SKIPPED.intersection(parts):
            found |= {q: a for q, a in _asked(ast.parse(file.read_bytes()), parts) if a not in earlier}
    return list(found.items())


def _asked(node: ast.AST, name: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _asked(child, (*name, child.name))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            answer = _first_sentence(ast.get_docstring(child) or "")
            if WORDS[0] <= len(answer.split()) <= WORDS[1]:
                yield f"What does {'.'.join((*name, child.name))}({ast.unparse(child.args)}) do?\n", answer


def _first_sentence(text: str) -> str:
    """Of the first paragraph, on one line; all of it where no sentence ends there."""
    paragraph = " ".join(re.split(r"\n[ \t]*\n", text)[0].split())
    found = _SENTENCE.match(paragraph)
    return found[1] if found else paragraph
