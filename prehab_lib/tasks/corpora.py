"""Text for a language model: the parts to train on and to choose by, and the columns of the table
it is scored in.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property

from prehab_lib.tasks import data, prose
from prehab_lib.tasks.comments import comments

C4_DOCUMENTS = 2000  # of the validation shard, as the released evaluation codes take

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True)
class Corpus:
    """Texts in their order.  tests: column of the table -> its texts, the training text's own
    domain first.

    source: what the texts are, as the protocol names them.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    tests: dict[str, tuple[str, ...]]
    source: str

    @cached_property
    def checksum(self) -> str:
        """Sixteen hexadecimal digits of the texts that models are trained on and chosen by."""
        digest = hashlib.sha256()
        for text in (*self.train, "", *self.validation):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]


@cache
def prose_corpus() -> Corpus:
    """Documentation and comments of the standard library, raw, a paragraph a text; the modules are
    split by `prose.part_of`.

    Trained on: documentation of the training modules and the language reference.  Scored:
    documentation of held-out modules, and their comments.  A paragraph that an earlier part has,
    however it is wrapped, is left out.
    """
    written = {part: [] for part in prose.PARTS}
    for module, _, text in prose.texts():
        written[prose.part_of(module)] += _BLANK_LINES.split(text)
    seen: set[str] = set()
    parts = {part: _new(written[part], seen) for part in prose.PARTS}
    return Corpus(
        name="prose",
        train=parts["train"],
        validation=parts["validation"],
        tests={"documentation": parts["test"], "comments": _new(comments("test"), seen)},
        source=f"held-out modules of Python's standard library (checksum {prose.checksum()})",
    )


def wikitext(
    name: str, data_root: str | None = None, dataset: str | None = None, other: str | None = "c4"
) -> Corpus:
    """WikiText-2: trained on, chosen by and scored on its own splits; held-out documents of C4 are
    the second column.

    name: "wikitext-2-raw-v1", on which papers report, or "wikitext-2-v1", where rare words are
    "<unk>".  dataset: a folder of your own with such Parquet files instead.  other: None leaves C4
    out.  Raises as `data.load` does.
    """
    like, place = data.DATASETS[name], dataset or name
    parts = {part: _texts(place, part, data_root, like) for part in prose.PARTS}
    column = "WikiText-2" if dataset is None else "own text"
    tests, source = {column: parts["test"]}, f"the test split of {place}"
    if other is not None:
        tests["C4"] = _texts(other, "test", data_root, data.DATASETS["c4"])[:C4_DOCUMENTS]
        source += f" and {len(tests['C4'])} held-out documents of C4"
    return Corpus(name, parts["train"], parts["validation"], tests, source)


def _new(texts: Iterable[str], seen: set[str]) -> tuple[str, ...]:
    """The texts whose words are not in `seen`, which grows by them."""
    found = []
    for text in texts:
        words = " ".join(text.split())
        if words and words not in seen:
            seen.add(words)
            found.append(text.strip("\n"))
    return tuple(found)


def _texts(name: str, part: str, data_root: str | None, like: data.Source) -> tuple[str, ...]:
    loaded = data.load(name, part, data_root, like)
    texts = tuple(loaded["text"])
    if any(not isinstance(text, str) for text in texts):
        raise ValueError(
            f"data set {name!r} has a row without text in its part {part!r}: every row must hold text"
        )
    return texts
