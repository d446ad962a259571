"""Embedded text: what every Python carries, the documentation and comments of its own library.

Sources are read with `ast` and `tokenize`, never imported, and what was found is kept in the cache.
The text differs between Python versions, so its checksum is recorded.  Everything is split by
module: no sentence that is scored is of a module that was trained on.
"""

import ast
import hashlib
import inspect
import re
import sys
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prehab_lib.inputs import check_choice
from prehab_lib.tasks.training import remembered

PARTS = ("train", "validation", "test")
TOPICS = "topics"  # the module name under which the language reference of `pydoc_data.topics` goes
WORDS = (5, 16)  # shortest and longest sentence
ANSWER_WORDS = (3, 40)  # shortest and longest answer of an instruction
COMMENT_WORDS = 4  # shorter comments are labels
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "turtledemo"}
SKIPPED |= {"encodings", "pydoc_data", "site-packages"}

# Examples, lists, tables, directives.
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.\.|[-*+|=~^]|\.\. )", re.MULTILINE)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z])")
_FIRST_SENTENCE = re.compile(r"(.+?[.!?])(?:\s|$)", re.DOTALL)
_PLAIN_WORD = re.compile(r"[\"'(]?[A-Za-z][a-z'-]*[\"').,;:!?]*")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+")
_NO_TEXT = re.compile(
    r"[\W_]*|!.*|-\*-.*|(type|noqa|pragma|pylint|fmt|vim?|Local variables)\b.*", re.IGNORECASE
)


class Docstring(NamedTuple):
    """module: top-level name.  name: dotted.  arguments: as written, of a function or method; None
    of a class, a module, or a function inside another.
    """

    module: str
    name: str
    text: str
    arguments: str | None


class Documentation(NamedTuple):
    """The sentences of one docstring or topic.  module: top-level name, the unit of the split."""

    module: str
    sentences: tuple[str, ...]


def part_of(module: str) -> str:
    """The part of a module: seven tenths of the names train, one is for choices, two for scores.

    A Python twin goes with its module ("_pyio" with "io"); the topics, which overlap one another,
    all train.
    """
    place = zlib.crc32(re.sub(r"^_(py_?)?", "", module).encode()) % 10
    if module == TOPICS or place < 7:
        return "train"
    return "validation" if place == 7 else "test"


def read_once(what: str, read: Callable, wanted: Iterable[str] = PARTS) -> list:
    """What `read(file, parts of its dotted name)` finds in every file of the wanted parts, by
    top-level module, kept until a file or the code changes.
    """
    home, places = _library(), []
    for module in sorted(sys.stdlib_module_names - SKIPPED):
        for file in (home / f"{module}.py", *sorted((home / module).rglob("*.py"))):
            name = file.relative_to(home).with_suffix("").parts
            if part_of(module) in wanted and file.is_file() and not SKIPPED.intersection(name):
                places.append((file, name))
    stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file, _ in places]
    key = [sys.version, stamps, inspect.getsource(inspect.getmodule(read))]
    return remembered(what, key, lambda: [item for place in places for item in read(*place)])


@cache
def docstrings() -> tuple[Docstring, ...]:
    """Of the whole library, in the order of the files; none where this Python has no sources."""
    return tuple(Docstring(*entry) for entry in read_once("docstrings", _docstrings_in))


@cache
def texts() -> tuple[tuple[str, str, str], ...]:
    """(module, name, text) of every docstring, by module, then of every help topic.

    Raises FileNotFoundError where this Python keeps its library without sources.
    """
    entries = [(entry.module, entry.name, entry.text) for entry in docstrings()]
    topics = _library() / "pydoc_data" / "topics.py"
    if not entries or not topics.is_file():
        raise FileNotFoundError(
            f"this Python has no library sources at {_library()}: the embedded prose is read from "
            "them; use another Python, or data of your own"
        )
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
def documentation(part: str) -> tuple[Documentation, ...]:
    """Every text of a part that has a sentence, without the sentences that an earlier part has.
    Raises ValueError for an unknown part.
    """
    check_choice("part", part, PARTS)
    earlier = {sentence for name in PARTS[: PARTS.index(part)] for sentence in sentences(name)}
    entries = []
    for module, _, text in texts():
        own = _sentences(text) if part_of(module) == part else ()
        own = tuple(sentence for sentence in own if sentence not in earlier)
        if own:
            entries.append(Documentation(module, own))
    return tuple(entries)


@cache
def sentences(part: str) -> tuple[str, ...]:
    """Every distinct sentence of a part, in order of appearance."""
    every = (sentence for entry in documentation(part) for sentence in entry.sentences)
    return tuple(dict.fromkeys(every))


@cache
def comments(part: str) -> tuple[str, ...]:
    """Comments that fill whole lines, adjoining lines as one text, by module and line.  Raises
    ValueError for an unknown part.
    """
    check_choice("part", part, PARTS)
    return tuple(read_once("comments", _comments_in, [part]))


@cache
def questions(part: str) -> list[tuple[str, str]]:
    """(question, answer) of every documented function and method of a part, in the order of the
    files: the answer is the first sentence of the docstring.  One that the training part has as
    well is left out elsewhere.  Raises ValueError for an unknown part.
    """
    check_choice("part", part, PARTS)
    earlier = {answer for _, answer in questions("train")} if part != "train" else set()
    asked = _asked(entry for entry in docstrings() if part_of(entry.module) == part)
    return list({question: answer for question, answer in asked if answer not in earlier}.items())


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _docstrings_in(file: Path, name: tuple[str, ...]) -> list[Docstring]:
    return _documented(ast.parse(file.read_bytes()), name, inside=False)


def _documented(node: ast.AST, name: tuple[str, ...], inside: bool) -> list[Docstring]:
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
    for paragraph in re.split(r"\n\s*\n", text):
        if not _NOT_PROSE.search(paragraph):
            plain = re.sub("[`*]", "", " ".join(paragraph.split()))
            written += filter(_is_prose, _SENTENCE_END.split(plain))
    normal = [_WORD.findall(sentence.lower()) for sentence in written]
    least, most = WORDS
    kept = [words for words in normal if least <= len(words) <= most and len(set(words)) > 2]
    return tuple(dict.fromkeys(" ".join(words) for words in kept))


def _is_prose(sentence: str) -> bool:
    """It begins and ends like one, and has few words with digits, brackets or underscores."""
    words = sentence.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return sentence[:1].isupper() and sentence[-1] in ".!?" and plain >= 0.85 * len(words)


def _comments_in(file: Path, name: tuple[str, ...] = ()) -> list[str]:
    blocks, last = [], -1
    for line, text in _comment_lines(file):
        if _NO_TEXT.fullmatch(text):
            continue
        if line == last + 1:
            blocks[-1].append(text)
        else:
            blocks.append([text])
        last = line
    texts = ["\n".join(block) for block in blocks]
    return [text for text in texts if len(text.split()) >= COMMENT_WORDS]


def _comment_lines(file: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of every comment that has its line for itself."""
    with tokenize.open(file) as source:
        for token in tokenize.generate_tokens(source.readline):
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
                yield token.start[0], token.string.lstrip("#").rstrip().removeprefix(" ")


def _asked(entries: Iterable[Docstring]) -> Iterator[tuple[str, str]]:
    least, most = ANSWER_WORDS
    for entry in entries:
        paragraph = " ".join(_PARAGRAPHS.split(entry.text)[0].split())
        sentence = _FIRST_SENTENCE.match(paragraph)
        answer = sentence[1] if sentence else paragraph
        if entry.arguments is not None and least <= len(answer.split()) <= most:
            yield f"What does {entry.name}({entry.arguments}) do?\n", answer
