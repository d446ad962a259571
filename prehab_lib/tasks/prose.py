"""Embedded prose: the documentation that every Python carries, as lower-case sentences, split by
source module.

Sources are read, never imported (`sources`).  The text differs between Python versions, so its
checksum is recorded.
"""

import ast
import hashlib
import re
import zlib
from dataclasses import dataclass
from functools import cache

from prehab_lib.tasks import sources

PARTS = ("train", "validation", "test")
TOPICS = "topics"  # the module name under which the language reference of `pydoc_data.topics` goes
WORDS = (5, 16)  # shortest and longest sentence

_NOT_PROSE = re.compile(
    r"^\s*(>>>|\.\.\.|[-*+|=~^]|\.\. )", re.MULTILINE
)  # examples, lists, tables, directives
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z])")
_PLAIN_WORD = re.compile(r"[\"'(]?[A-Za-z][a-z'-]*[\"').,;:!?]*")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+")


@dataclass(frozen=True)
class Documentation:
    """The sentences of one docstring or topic.  module: top-level name, the unit of the split.
    name: dotted, or a topic's.
    """

    module: str
    name: str
    sentences: tuple[str, ...]


@cache
def texts() -> tuple[tuple[str, str, str], ...]:
    """(module, name, text) of every docstring of the standard library, by module, then of every
    help topic.

    Raises FileNotFoundError where this Python keeps its library without sources.
    """
    found = [(entry.module, entry.name, entry.text) for entry in sources.entries()]
    topics = sources.library() / "pydoc_data" / "topics.py"
    if not found or not topics.is_file():
        raise FileNotFoundError(
            f"this Python has no library sources at {sources.library()}: the embedded prose is read from them; use another "
            "Python, or data of your own"
        )
    literal = next(
        node.value for node in ast.parse(topics.read_bytes()).body if isinstance(node, ast.Assign)
    )
    return (
        *found,
        *((TOPICS, name, text) for name, text in sorted(ast.literal_eval(literal).items())),
    )


@cache
def checksum() -> str:
    """Sixteen hexadecimal digits of the whole text."""
    return hashlib.sha256(
        "\0".join(field for entry in texts() for field in entry).encode()
    ).hexdigest()[:16]


def part_of(module: str) -> str:
    """The part a module belongs to: seven tenths of the names train, a tenth for choices, two for
    scores.

    A Python twin goes with its module ("_pyio" with "io"); the topics, which overlap one another,
    all train.
    """
    place = zlib.crc32(re.sub(r"^_(py_?)?", "", module).encode()) % 10
    return "train" if module == TOPICS or place < 7 else "validation" if place == 7 else "test"


@cache
def documentation(part: str) -> tuple[Documentation, ...]:
    """Every text of a part that has a sentence; a sentence that an earlier part has as well is left
    out there.

    Raises ValueError for an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part = {part!r} is not known: choose one of {', '.join(PARTS)}")
    earlier = {sentence for name in PARTS[: PARTS.index(part)] for sentence in sentences(name)}
    found = []
    for module, name, text in texts():
        if part_of(module) == part:
            own = tuple(sentence for sentence in _sentences(text) if sentence not in earlier)
            found += [Documentation(module, name, own)] if own else []
    return tuple(found)


@cache
def sentences(part: str) -> tuple[str, ...]:
    """Every distinct sentence of a part, in order of appearance."""
    return tuple(
        dict.fromkeys(sentence for entry in documentation(part) for sentence in entry.sentences)
    )


@cache
def _sentences(text: str) -> tuple[str, ...]:
    """Distinct sentences of plain words, lower-cased and without punctuation: case and full stop
    would tell their order.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if not _NOT_PROSE.search(paragraph):
            plain = re.sub("[`*]", "", " ".join(paragraph.split()))
            found += [
                _normal(sentence) for sentence in _SENTENCE_END.split(plain) if _is_prose(sentence)
            ]
    counted = {sentence: sentence.split() for sentence in found}
    return tuple(
        s
        for s, words in counted.items()
        if WORDS[0] <= len(words) <= WORDS[1] and len(set(words)) > 2
    )


def _normal(sentence: str) -> str:
    return " ".join(_WORD.findall(sentence.lower()))


def _is_prose(sentence: str) -> bool:
    """A sentence that begins and ends like one, and has few words with digits, brackets or
    underscores.
    """
    words = sentence.split()
    plain = sum(_PLAIN_WORD.fullmatch(word) is not None for word in words)
    return sentence[:1].isupper() and sentence[-1] in ".!?" and plain >= 0.85 * len(words)
