"""A language task: training, calibration and scored windows of one corpus, for one tokenizer, and
its perplexities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_whole
from prehab_lib.tasks.bpe import prose_bpe, train_bpe
from prehab_lib.tasks.corpora import Corpus, prose_corpus, wikitext
from prehab_lib.tasks.perplexity import check_fits, perplexity
from prehab_lib.tasks.windows import Draws, Windows, cut, token_stream

CORPORA = {
    "prose": None,
    "wikitext2": "wikitext-2-raw-v1",
    "wikitext2-v1": "wikitext-2-v1",
}  # name -> its data set
CHOSEN_ON = 128  # validation windows that choices are made by, spread evenly
SCORED_BATCH = 8  # windows scored at a time; the score does not depend on it


@dataclass(frozen=True, eq=False)
class LanguageTask:
    """train, calibration, validation (seed, count): batches of random windows, {"input_ids":
    (batch, window)}.

    The same seed gives the same batches at every pass, so compared arms see the same data.
    validation is for choices, as chosen_on is, fixed windows of the same text; never the scored
    ones.  tests: column of the table -> its windows, the training text's own domain first.  bos:
    put in front of drawn windows, None for none.  checksum: of the text. protocol: how the score is
    taken, one sentence, stored with every number.
    """

    name: str
    tokenizer: object
    window: int
    batch: int
    training: Tensor  # (N,)
    held_out: Tensor  # (N,) of the validation part
    chosen_on: Windows
    tests: dict[str, Windows]
    checksum: str
    protocol: str
    bos: int | None = None

    def train(self, seed: int, count: int) -> Draws:
        return self._draw(self.training, 1000 + seed, count)

    def calibration(self, seed: int, count: int) -> Draws:
        return self._draw(self.training, 2000 + seed, count)

    def validation(self, seed: int, count: int) -> Draws:
        return self._draw(self.held_out, 3000 + seed, count)

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Column of the table -> perplexity, lower is better.  Raises as `perplexity` does."""
        return {
            name: perplexity(model, windows, SCORED_BATCH) for name, windows in self.tests.items()
        }

    def unigram(self) -> dict[str, float]:
        """Column -> perplexity of the tokens' frequencies in the training part, each counted once
        more: what needs no model.
        """
        size = max(
            len(self.tokenizer),
            1 + max(int(w.ids.max()) for w in self.tests.values()),
            1 + int(self.training.max()),
        )
        counts = torch.bincount(self.training, minlength=size).double() + 1
        logs = (counts / counts.sum()).log()
        return {
            name: float((-logs[windows.ids[:, 1:]].mean()).exp())
            for name, windows in self.tests.items()
        }

    def check(self, model: nn.Module) -> None:
        """Raises ValueError where the model lacks an embedding for a token of the text, or
        positions for a window.
        """
        highest = max(
            int(ids.max())
            for ids in (self.training, self.held_out, *(w.ids for w in self.tests.values()))
        )
        check_fits(model, torch.full((1, self.window), highest))

    def _draw(self, stream: Tensor, seed: int, count: int) -> Draws:
        return Draws(stream, self.window, self.batch, seed, count, self.bos)


def open_language_task(
    name: str,
    window: int,
    batch: int,
    tokenizer=None,
    *,
    data_root: str | None = None,
    dataset: str | None = None,
    other: str | None = "c4",
    test_windows: int | None = None,
    vocabulary: int = 1000,
    bos: bool = False,
) -> LanguageTask:
    """The task of a name: "prose" is embedded; "wikitext2" is WikiText-2 raw, "wikitext2-v1" the
    one with "<unk>".

    window: tokens (the paper: 2048).  batch: windows of a drawn batch.  tokenizer: the checkpoint's
    (`bpe.tokenizer_of`); None trains a byte-level BPE of `vocabulary` tokens on the training part.
    data_root: the folder that holds the data sets; dataset: a folder with train, validation and
    test Parquet files of a column "text" instead of WikiText-2; other: None leaves out the second
    column.  test_windows: score so many windows a column, spread evenly (None or 0: all). bos:
    drawn windows begin with BOS, as SVD-LLM's calibration does; scored ones never but the first.

    Raises as `data.load` does, and ValueError for an unknown name, a bad number, a text shorter
    than one window, or BOS wanted of a tokenizer that has none.
    """
    if name not in CORPORA:
        raise ValueError(f"task = {name!r} is not known: choose one of {', '.join(CORPORA)}")
    check_whole(2, window=window)
    check_whole(1, batch=batch)
    check_whole(0, test_windows=test_windows or 0)
    corpus = (
        prose_corpus() if name == "prose" else wikitext(CORPORA[name], data_root, dataset, other)
    )
    if tokenizer is None:
        tokenizer = (
            prose_bpe(vocabulary) if name == "prose" else train_bpe(corpus.train, vocabulary)
        )
    if bos and tokenizer.bos_token_id is None:
        raise ValueError("bos = True: this tokenizer has no BOS token, set bos = False")
    held_out = token_stream(corpus.validation, tokenizer)
    tests = {
        column: cut(
            token_stream(texts, tokenizer), window, test_windows, f"the test text {column!r}"
        )
        for column, texts in corpus.tests.items()
    }
    return LanguageTask(
        name=name,
        tokenizer=tokenizer,
        window=window,
        batch=batch,
        training=token_stream(corpus.train, tokenizer),
        held_out=held_out,
        chosen_on=cut(held_out, window, CHOSEN_ON, "the validation text"),
        tests=tests,
        checksum=corpus.checksum,
        protocol=_protocol(corpus, tests, tokenizer, window),
        bos=tokenizer.bos_token_id if bos else None,
    )


def _protocol(corpus: Corpus, tests: dict[str, Windows], tokenizer, window: int) -> str:
    first = next(iter(tests.values())).ids[0, 0]
    start = "BOS in front of the text" if int(first) == tokenizer.bos_token_id else "no BOS"
    counts = ", ".join(
        f"{column} {len(w)} of {w.whole} windows ({w.dropped} tokens dropped)"
        for column, w in tests.items()
    )
    return (
        f"perplexity, exp of the mean cross-entropy of a token, on {corpus.source}: texts joined by blank lines, {start}, "
        f"non-overlapping windows of {window} tokens, each read alone and its first token not scored, the remainder "
        f"dropped: {counts}"
    )
