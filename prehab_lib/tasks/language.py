"""A language task: training, calibration and scored windows of one corpus, for one tokenizer, and
its perplexities.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.tasks.corpora import prose_corpus, wikitext
from prehab_lib.tasks.drawn import Drawn, Task
from prehab_lib.tasks.perplexity import check_fits, perplexity
from prehab_lib.tasks.tokenizers import prose_bpe, train_bpe
from prehab_lib.tasks.windows import Windows, cut, drawn_windows, token_stream

# Name of the task -> its data set.
CORPORA = {"prose": None, "wikitext2": "wikitext-2-raw-v1", "wikitext2-v1": "wikitext-2-v1"}
CHOSEN_ON = 128  # validation windows that choices are made by, spread evenly
SCORED_BATCH = 8  # windows scored at a time; the score does not depend on it


@dataclass(frozen=True, eq=False)
class LanguageTask(Task):
    """Batches are random windows, {"input_ids": (batch, window)}.

    chosen_on: fixed windows for choices, never scored.  tests: column of the table -> its windows,
    the training text's own domain first.  source: what the scored text is.
    """

    name: str
    tokenizer: object
    window: int
    batch: int
    training: Tensor  # (N,)
    held_out: Tensor  # (N,) of the validation part
    chosen_on: Windows
    tests: dict[str, Windows]
    source: str

    def draw(self, purpose: str, seed: int, count: int) -> Drawn:
        stream = self.held_out if purpose == "validation" else self.training
        return drawn_windows(stream, self.window, self.batch, seed, count)

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Column of the table -> perplexity, lower is better.  Raises as `perplexity` does."""
        return {
            name: perplexity(model, windows, SCORED_BATCH) for name, windows in self.tests.items()
        }

    def unigram(self) -> dict[str, float]:
        """Column -> perplexity of the tokens' frequencies in the training part, each counted once
        more: what needs no model.
        """
        highest = max(int(windows.ids.max()) for windows in self.tests.values())
        size = max(len(self.tokenizer), 1 + highest, 1 + int(self.training.max()))
        counts = torch.bincount(self.training, minlength=size).double() + 1
        nats = -(counts / counts.sum()).log()
        return {name: float(nats[w.ids[:, 1:]].mean().exp()) for name, w in self.tests.items()}

    def check(self, model: nn.Module) -> None:
        """Raises ValueError as `check_fits` does, for all text of the task."""
        streams = (self.training, self.held_out, *(w.ids for w in self.tests.values()))
        check_fits(model, max(int(ids.max()) for ids in streams), window=self.window)

    @property
    def protocol(self) -> str:
        """How the score is taken, one sentence, stored with every number."""
        first = next(iter(self.tests.values())).ids[0, 0]
        led = int(first) == self.tokenizer.bos_token_id
        counts = ", ".join(
            f"{column} {len(w)} of {w.whole} windows ({w.dropped} tokens dropped)"
            for column, w in self.tests.items()
        )
        return (
            f"perplexity, exp of the mean cross-entropy of a token, on {self.source}: texts joined "
            f"by blank lines, {'BOS in front of the text' if led else 'no BOS'}, non-overlapping "
            f"windows of {self.window} tokens, each read alone and its first token not scored, the "
            f"remainder dropped: {counts}"
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
) -> LanguageTask:
    """The task of a name: "prose" is embedded; "wikitext2" is WikiText-2 raw, "wikitext2-v1" the
    one with "<unk>".

    window: tokens (the paper: 2048).  batch: windows of a drawn batch.  tokenizer: the checkpoint's
    (`tokenizers.tokenizer_of`); None trains a byte-level BPE of `vocabulary` tokens on the training
    part.  data_root, dataset: as `corpora.wikitext` takes them.  test_windows: score so many
    windows a column, spread evenly (None or 0: all).  Raises as `data.load` does, and ValueError
    for an unknown name, a bad number, or a text shorter than one window.
    """
    check_choice("task", name, CORPORA)
    check_whole(2, window=window)
    check_whole(1, batch=batch)
    check_whole(0, test_windows=test_windows or 0)
    embedded = name == "prose"
    corpus = prose_corpus() if embedded else wikitext(CORPORA[name], data_root, dataset)
    if tokenizer is None:
        tokenizer = prose_bpe(vocabulary) if embedded else train_bpe(corpus.train, vocabulary)
    held_out = token_stream(corpus.validation, tokenizer)
    tests = {}
    for column, texts in corpus.tests.items():
        stream = token_stream(texts, tokenizer)
        tests[column] = cut(stream, window, test_windows, f"the test text {column!r}")
    return LanguageTask(
        name=name,
        tokenizer=tokenizer,
        window=window,
        batch=batch,
        training=token_stream(corpus.train, tokenizer),
        held_out=held_out,
        chosen_on=cut(held_out, window, CHOSEN_ON, "the validation text"),
        tests=tests,
        source=corpus.source,
    )
