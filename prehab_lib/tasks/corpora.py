"""Text for a language model: the parts to train on and to choose by, and the columns of the table
it is scored in.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from prehab_lib.tasks import data, prose

C4_DOCUMENTS = 2000  # of the validation shard, as the released evaluation codes take

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


@dataclass(frozen=True)
class Corpus:
    """Texts in their order.  tests: column of the table -> its texts, the training text's own
    domain first.  source: what the texts are, as the protocol names them.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    tests: dict[str, tuple[str, ...]]
    source: str


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
    earlier: set[str] = set()
    parts = {part: _new(written[part], earlier) for part in prose.PARTS}
    return Corpus(
        name="prose",
        train=parts["train"],
        validation=parts["validation"],
        tests={"documentation": parts["test"], "comments": _new(prose.comments("test"), earlier)},
        source=f"held-out modules of Python's standard library (checksum {prose.checksum()})",
    )


def wikitext(name: str, data_root: str | None = None, dataset: str | None = None) -> Corpus:
    """WikiText-2: trained on, chosen by and scored on its own splits; held-out documents of C4 are
    the second column.

    name: "wikitext-2-raw-v1", on which papers report, or "wikitext-2-v1", where rare words are
    "<unk>".  dataset: a folder of your own with such Parquet files instead.  Raises as `data.load`
    does.
    """
    place = dataset or name
    train, validation, test = (
        _texts(place, part, data_root, data.DATASETS[name]) for part in prose.PARTS
    )
    c4 = _texts("c4", "test", data_root, data.DATASETS["c4"])[:C4_DOCUMENTS]
    tests = {"WikiText-2" if dataset is None else "own text": test, "C4": c4}
    source = f"the test split of {place} and {len(c4)} held-out documents of C4"
    return Corpus(name, train, validation, tests, source)


def _new(texts: Iterable[str], earlier: set[str]) -> tuple[str, ...]:
    """The texts whose words are not in `earlier`, which grows by them."""
    kept = []
    for text in texts:
        words = " ".join(text.split())
        if words and words not in earlier:
            earlier.add(words)
            kept.append(text.strip("\n"))
    return tuple(kept)


def _texts(name: str, part: str, data_root: str | None, like: data.Source) -> tuple[str, ...]:
    texts = tuple(data.load(name, part, data_root, like)["text"])
    if any(not isinstance(text, str) for text in texts):
        raise ValueError(
            f"data set {name!r} has a row without text in its part {part!r}: every row must hold "
            "text"
        )
    return texts
