"""Embedded text: what every Python carries, the documentation and comments of its own library.

Sources are read, never imported.  The text differs between Python versions, so its checksum is
recorded.  Everything is split by module: no sentence that is scored is of a module that was trained
on.  Whatever takes a part raises ValueError for an unknown one.
"""

import ast
import hashlib
import re
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from prehab_lib.inputs import check_choice

PARTS = ("train", "validation", "test")
TOPICS = "topics"  # the module name under which the language reference of `pydoc_data.topics` goes
WORDS = (5, 16)  # shortest and longest sentence
ANSWER_WORDS = (3, 40)  # shortest and longest answer of an instruction
COMMENT_WORDS = 4  # shorter comments are labels
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data"}
SKIPPED |= {"site-packages"}

# Examples, lists, tables, directives.
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|[-*+|=~^]|\.\. )", re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z])")
_FIRST_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
_PLAIN_WORD = re.compile(r"[\"'(]?[A-Za-z][a-z'-]*[\"').,;:!?]*")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+")
_DIRECTIVE = r"(type|noqa|pragma|pylint|fmt|vim?|Local variables)\b.*"
_NO_TEXT = re.compile(rf"[\W_]*|!.*|-\*-.*|{_DIRECTIVE}", re.IGNORECASE)


class Docstring(NamedTuple):
    module: str
    name: str
    text: str
    arguments: str | None  # as written, of a function that is not inside another


def part_of(module: str) -> str:
    """The part of a module: seven tenths of the names train, one is for choices, two for scores."""
    # A Python twin goes with its module ("_pyio" with "io").  All topics train: they overlap.
    place = zlib.crc32(re.sub(r"^_(py_?)?", "", module).encode()) % 10
    if module == TOPICS or place < 7:
        return "train"
    return "validation" if place == 7 else "test"


def files() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """(file, parts of its dotted name) of the library, by top-level module."""
    home = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - SKIPPED):
        for file in (home / f"{module}.py", *sorted((home / module).rglob("*.py"))):
            name = file.relative_to(home).with_suffix("").parts
            if file.is_file() and not SKIPPED.intersection(name):
                yield file, name


@cache
def docstrings() -> tuple[Docstring, ...]:
    """Of the whole library, in the order of the files; none where this Python has no sources."""
    found = (_documented(ast.parse(file.read_bytes()), name) for file, name in files())
    return tuple(chain.from_iterable(found))


@cache
def texts() -> tuple[tuple[str, str, str], ...]:
    """(module, name, text) of every docstring and help topic; raises FileNotFoundError for none."""
    entries = [(entry.module, entry.name, entry.text) for entry in docstrings()]
    home = Path(sysconfig.get_path("stdlib"))
    topics = home / "pydoc_data" / "topics.py"
    if not entries or not topics.is_file():
        without = f"this Python has no library sources at {home}"
        raise FileNotFoundError(f"{without}: use another Python, or data of your own")
    statements = ast.parse(topics.read_bytes()).body
    literal = next(node.value for node in statements if isinstance(node, ast.Assign))
    entries += [(TOPICS, name, text) for name, text in sorted(ast.literal_eval(literal).items())]
    return tuple(entries)


@cache
def checksum() -> str:
    """Sixteen hexadecimal digits of the whole text."""
    whole = "\0".join(field for entry in texts() for field in entry)
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


@cache
def documentation(part: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(module, sentences) of every text of a part, without the sentences of an earlier part."""
    check_choice("part", part, PARTS)
    earlier = {sentence for name in PARTS[: PARTS.index(part)] for sentence in sentences(name)}
    entries = [(module, _sentences(text)) for module, _, text in texts() if part_of(module) == part]
    return tuple((module, tuple(s for s in own if s not in earlier)) for module, own in entries)


@cache
def sentences(part: str) -> tuple[str, ...]:
    """Every distinct sentence of a part, in order of appearance."""
    return tuple(dict.fromkeys(sentence for _, own in documentation(part) for sentence in own))


@cache
def comments(part: str) -> tuple[str, ...]:
    """Comments that fill whole lines, adjoining lines as one text, by module and line."""
    check_choice("part", part, PARTS)
    chosen = [file for file, name in files() if part_of(name[0]) == part]
    return tuple(text for file in chosen for text in _comments_in(file))


@cache
def questions(part: str) -> list[tuple[str, str]]:
    """(question, first sentence of the docstring) of a part's functions, none trained on."""
    check_choice("part", part, PARTS)
    earlier = {answer for _, answer in questions("train")} if part != "train" else set()
    asked = _asked(entry for entry in docstrings() if part_of(entry.module) == part)
    return list({question: answer for question, answer in asked if answer not in earlier}.items())


def _documented(node: ast.AST, name: tuple[str, ...], inside=False) -> list[Docstring]:
    """inside: whether a function is around the node."""
    function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    text, entries = ast.get_docstring(node), []
    if text:
        arguments = ast.unparse(node.args) if function and not inside else None
        entries.append(Docstring(name[0], ".".join(name), text, arguments))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            entries += _documented(child, (*name, child.name), inside or function)
    return entries


@cache
def _sentences(text: str) -> tuple[str, ...]:
    """Distinct sentences, lower-cased and bare: case and full stop would tell the words' order."""
    written = []
    for paragraph in _PARAGRAPHS.split(text):
        if not _NOT_PROSE.search(paragraph):
            plain = re.sub("[`*]", "", " ".join(paragraph.split()))
            written += filter(_is_prose, _SENTENCE_END.split(plain))
    normal = [_WORD.findall(sentence.lower()) for sentence in written]
    shortest, longest = WORDS
    kept = [words for words in normal if shortest <= len(words) <= longest and len(set(words)) > 2]
    return tuple(dict.fromkeys(" ".join(words) for words in kept))


def _is_prose(sentence: str) -> bool:
    """It begins and ends like one, and has few words with digits, brackets or underscores."""
    words = sentence.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return sentence[:1].isupper() and sentence[-1] in ".!?" and plain >= 0.85 * len(words)


def _comments_in(file: Path) -> list[str]:
    texts, last = [], -1
    with tokenize.open(file) as source:
        tokens = list(tokenize.generate_tokens(source.readline))
    for token in tokens:
        text, line = token.string.lstrip("#").rstrip().removeprefix(" "), token.start[0]
        alone = token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")
        if not alone or _NO_TEXT.fullmatch(text):
            continue
        if line == last + 1:
            text = f"{texts.pop()}\n{text}"
        texts.append(text)
        last = line
    return [text for text in texts if len(text.split()) >= COMMENT_WORDS]


def _asked(entries: Iterable[Docstring]) -> Iterator[tuple[str, str]]:
    shortest, longest = ANSWER_WORDS
    for entry in entries:
        paragraph = " ".join(_PARAGRAPHS.split(entry.text)[0].split())
        sentence = _FIRST_SENTENCE.match(paragraph)
        answer = sentence[1] if sentence else paragraph
        if entry.arguments is not None and shortest <= len(answer.split()) <= longest:
            yield f"What does {entry.name}({entry.arguments}) do?\n", answer
