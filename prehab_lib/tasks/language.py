"""Text for a language model, as windows for one tokenizer, and the columns it is scored in."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.tasks import data, prose
from prehab_lib.tasks.drawn import Drawn, Task
from prehab_lib.tasks.perplexity import check_fits, perplexity
from prehab_lib.tasks.tokenizers import train_bpe
from prehab_lib.tasks.windows import Windows, cut, drawn_windows, token_stream

# Name of the task -> its data set: "prose" is embedded, WikiText-2 is raw or has "<unk>".
CORPORA = {"prose": None, "wikitext2": "wikitext-2-raw-v1", "wikitext2-v1": "wikitext-2-v1"}
C4_DOCUMENTS = 2000  # of the validation shard, as the released evaluation codes take
CHOSEN_ON = 128  # validation windows that choices are made by, spread evenly

_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


class Corpus(NamedTuple):
    train: tuple[str, ...]
    validation: tuple[str, ...]
    tests: dict[str, tuple[str, ...]]
    source: str


@dataclass(frozen=True, eq=False)
class LanguageTask(Task):
    """Batches are random windows, {"input_ids": (batch, window)}."""

    name: str
    tokenizer: object
    window: int
    batch: int
    training: Tensor  # (N,)
    held_out: Tensor  # (N,) of the validation part
    chosen_on: Windows  # never scored
    tests: dict[str, Windows]  # by column of the table, the training text's own domain first
    source: str  # what the scored text is
    lead: int | None = None  # a token in front of every window: BOS

    def draw(self, purpose: str, seed: int, count: int) -> Drawn:
        stream = self.held_out if purpose == "validation" else self.training
        return drawn_windows(stream, self.window, self.batch, seed, count, self.lead)

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Column of the table -> perplexity, lower is better.  Raises as `perplexity` does."""
        return {name: perplexity(model, windows) for name, windows in self.tests.items()}

    def unigram(self) -> dict[str, float]:
        """Column -> perplexity of the training part's token frequencies, each counted once more."""
        size = max(len(self.tokenizer), 1 + self._highest())
        counts = torch.bincount(self.training, minlength=size).double() + 1
        nats = -(counts / counts.sum()).log()
        return {name: float(nats[w.ids[:, 1:]].mean().exp()) for name, w in self.tests.items()}

    def check(self, model: nn.Module) -> None:
        """Raises ValueError as `check_fits` does, for all text of the task."""
        check_fits(model, self._highest(), window=self.window)

    def _highest(self) -> int:
        streams = (self.training, self.held_out, *(w.ids for w in self.tests.values()))
        return max(int(ids.max()) for ids in streams)

    @property
    def protocol(self) -> str:
        """How the score is taken, one sentence, stored with every number."""
        first = int(next(iter(self.tests.values())).ids[0, 0])
        bos = "BOS in front of the text" if first == self.tokenizer.bos_token_id else "no BOS"
        bos = bos if self.lead is None else "BOS in front of each window"
        counts = ", ".join(f"{column} {windows}" for column, windows in self.tests.items())
        return (
            f"perplexity, exp of the mean cross-entropy of a token, on {self.source}: texts joined "
            f"by blank lines, {bos}, non-overlapping windows of {self.window} tokens, each read "
            f"alone and its first token not scored, the remainder dropped: {counts}"
        )


def open_language_task(
    name: str,
    window: int,
    batch: int,
    tokenizer=None,
    *,
    data_root: str | None = None,
    dataset: str | None = None,
    test_windows: int | None = None,
    vocabulary: int = 1000,
    bos: bool = False,
) -> LanguageTask:
    """The task of a name, a key of `CORPORA`.

    window: tokens (the paper: 2048).  batch: windows of a drawn batch.  tokenizer: None trains one
    of `vocabulary` tokens on the training part.  data_root, dataset: as `wikitext` takes them.
    test_windows: score so many a column, spread evenly (None or 0: all).  bos: BOS in front of each
    window, drawn or scored, as its first token.  Raises as `data.load` does, and ValueError for an
    unknown name, a bad number, a text shorter than one window, or a tokenizer without BOS.
    """
    check_choice("task", name, CORPORA)
    check_whole(2, window=window)
    check_whole(1, batch=batch)
    check_whole(0, test_windows=test_windows or 0)
    corpus = prose_corpus() if name == "prose" else wikitext(CORPORA[name], data_root, dataset)
    tokenizer = train_bpe(corpus.train, vocabulary) if tokenizer is None else tokenizer
    lead = tokenizer.bos_token_id if bos else None
    if bos and lead is None:
        raise ValueError("bos = True, and the tokenizer has no BOS token: leave it out")

    def stream_of(texts) -> Tensor:
        stream = token_stream(texts, tokenizer)
        return stream[1:] if stream[0] == lead else stream

    parts = [stream_of(texts) for texts in (corpus.train, corpus.validation)]
    chosen_on = cut(parts[1], window, CHOSEN_ON, "the validation text", lead)
    tests = {}
    for column, texts in corpus.tests.items():
        what = f"the test text {column!r}"
        tests[column] = cut(stream_of(texts), window, test_windows, what, lead)
    shared = (name, tokenizer, window, batch, *parts, chosen_on, tests, corpus.source)
    return LanguageTask(*shared, lead)


@cache
def prose_corpus() -> Corpus:
    """Paragraphs of the standard library's texts, by module; none that an earlier part has."""
    written = {part: [] for part in prose.PARTS}
    for module, _, text in prose.texts():
        written[prose.part_of(module)] += _BLANK_LINES.split(text)
    earlier = {""}
    train, validation, test = (_new(written[part], earlier) for part in prose.PARTS)
    tests = {"documentation": test, "comments": _new(prose.comments("test"), earlier)}
    source = f"held-out modules of Python's standard library (checksum {prose.checksum()})"
    return Corpus(train, validation, tests, source)


def wikitext(name: str, data_root: str | None = None, dataset: str | None = None) -> Corpus:
    """WikiText-2 by its name, or a folder like it, then documents of C4; raises as `data.load`."""
    place, like = dataset or name, data.DATASETS[name]
    train, validation, test = (_texts(place, part, data_root, like) for part in prose.PARTS)
    c4 = _texts("c4", "test", data_root, like)[:C4_DOCUMENTS]
    tests = {"WikiText-2" if dataset is None else "own text": test, "C4": c4}
    source = f"the test split of {place} and {len(c4)} held-out documents of C4"
    return Corpus(train, validation, tests, source)


def _new(texts: Iterable[str], earlier: set[str]) -> tuple[str, ...]:
    """The texts whose words are not in `earlier`, which grows by them."""
    kept: dict[str, str] = {}
    for text in texts:
        kept.setdefault(" ".join(text.split()), text.strip("\n"))
    new = tuple(text for words, text in kept.items() if words not in earlier)
    earlier.update(kept)
    return new


def _texts(name: str, part: str, data_root: str | None, like: data.Source) -> tuple[str, ...]:
    texts = tuple(data.load(name, part, data_root, like)["text"])
    if not all(isinstance(text, str) for text in texts):
        without = f"a row without text in its part {part!r}"
        raise ValueError(f"data set {name!r} has {without}: every row must hold text")
    return texts
