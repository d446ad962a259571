"""A sentence task: training, calibration and scored batches of one data set, ready for one
tokenizer, and its score.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, mean_over_samples, move
from prehab_lib.evaluate import each_answer, logits_and_labels
from prehab_lib.inputs import check_whole
from prehab_lib.tasks import data, prose, prose_tasks
from prehab_lib.tasks.glue import GLUE, task_named
from prehab_lib.tasks.metrics import Score, score
from prehab_lib.tasks.prose_tasks import PROSE
from prehab_lib.tasks.rows import RowBatches, Rows, check_rows, count_longer

SCORED_BATCH = 64  # rows scored at a time; the score does not depend on it
RANDOM_DRAWS = 20  # the random baseline is their mean


@dataclass(frozen=True)
class SentenceTask:
    """train, calibration, validation (seed, count) and test(): batches as `rows.RowBatches` makes
    them.

    The same seed gives the same batches at every pass, so compared arms see the same data.
    validation is for choices, never the scored rows: held-out modules of the embedded prose, or
    other draws of a data set's training rows. scored: column of the table -> its rows.  labels:
    class names, empty for a regression.  protocol: how the score is taken, one sentence, stored
    with every number.  recipe: arguments of `finetune.fine_tune`: the paper's, or the small
    model's.
    """

    name: str
    metric: str
    labels: tuple[str, ...]
    tokenizer: object
    batch: int
    max_length: int
    training: Rows
    chosen_on: Rows
    scored: dict[str, Rows]
    protocol: str
    recipe: dict

    @property
    def outputs(self) -> int:
        """Size of the classifier: one output a class, or one for a regression."""
        return len(self.labels) or 1

    @property
    def epoch(self) -> int:
        """Batches in one pass over the training rows."""
        return -(-len(self.training) // self.batch)

    def train(self, seed: int, count: int) -> RowBatches:
        return self._draw(self.training, 1000 + seed, count)

    def calibration(self, seed: int, count: int) -> RowBatches:
        return self._draw(self.training, 2000 + seed, count)

    def validation(self, seed: int, count: int) -> RowBatches:
        return self._draw(self.chosen_on, 3000 + seed, count)

    def test(self) -> Iterator[dict[str, Tensor]]:
        """Every scored row once, column after column."""
        return chain.from_iterable(self._once(rows) for rows in self.scored.values())

    def scores(self, model: nn.Module) -> dict[str, Score]:
        """Column of the table -> the metric on its rows, between -1 and 1, in eval mode.

        Raises ValueError for logits that are not finite.
        """
        return {
            name: score(self.metric, *predict(model, self._once(rows)))
            for name, rows in self.scored.items()
        }

    def score(self, model: nn.Module) -> float:
        """The one number of the task: of its column, or the mean of MNLI's two, which the paper
        merges in its averages.
        """
        return fmean(map(float, self.scores(model).values()))

    def baselines(self) -> dict[str, dict[str, Score]]:
        """What needs no model: "constant" (the best of the answers that are always the same: for
        accuracy the majority class, for F1 often the other one) and "random" (labels drawn like the
        training rows', the mean of 20 draws). Each: column -> score.
        """
        known = np.asarray(self.training.labels)
        answers = range(len(self.labels)) if self.labels else [known.mean()]
        draw = np.random.default_rng(0)
        found = {"constant": {}, "random": {}}
        for name, rows in self.scored.items():
            same = [
                score(self.metric, np.full(len(rows), answer), rows.labels) for answer in answers
            ]
            found["constant"][name] = max(same, key=float)
            draws = (
                score(self.metric, draw.choice(known, len(rows)), rows.labels)
                for _ in range(RANDOM_DRAWS)
            )
            found["random"][name] = Score(fmean(map(float, draws)))
        return found

    def _draw(self, rows: Rows, seed: int, count: int) -> RowBatches:
        return RowBatches(rows, self.tokenizer, self.batch, self.max_length, seed, count)

    def _once(self, rows: Rows) -> RowBatches:
        return RowBatches(rows, self.tokenizer, SCORED_BATCH, self.max_length)


def open_task(name: str, batch: int, tokenizer=None, **options) -> SentenceTask:
    """The task of a name: an embedded one of `PROSE`, or a GLUE task, with the options and errors
    of its own opener.

    Raises ValueError for a name that is neither.
    """
    check_whole(1, batch=batch)
    if name in PROSE:
        return prose_task(
            name,
            batch,
            tokenizer,
            **{k: v for k, v in options.items() if k not in ("data_root", "dataset")},
        )
    if name not in GLUE:
        raise ValueError(
            f"task = {name!r} is not known: choose one of {', '.join((*PROSE, *GLUE))}"
        )
    return glue_task(name, batch, tokenizer, **options)


def prose_task(
    name: str,
    batch: int,
    tokenizer=None,
    *,
    max_length: int | None = None,
    test_rows: int | None = None,
) -> SentenceTask:
    """An embedded task.  tokenizer: None is the small one of `small_text.prose_tokenizer`.
    max_length: None is 48 tokens.

    test_rows: score on so many of the rows, the same ones always (None or 0: all).
    """
    from prehab_lib.tasks.small_text import prose_tokenizer

    parts = {part: prose_tasks.rows(name, part) for part in prose.PARTS}
    task, whole = PROSE[name], len(parts["test"])
    scored = {name: _capped(parts["test"], test_rows)}
    tokenizer = prose_tokenizer() if tokenizer is None else tokenizer
    max_length = _length(max_length, 48, tokenizer)
    where = f"held-out modules of the standard library (checksum {prose.checksum()})"
    recipe = dict(lr=task.lr, steps=task.steps, beta2=task.beta2, warmup=0.3)
    chosen_on, setting = parts["validation"], (tokenizer, batch, max_length)
    return _task(
        name, task, parts["train"], chosen_on, scored, {name: whole}, where, setting, recipe
    )


def glue_task(
    name: str,
    batch: int,
    tokenizer,
    *,
    dataset: str | None = None,
    data_root: str | None = None,
    max_length: int | None = None,
    test_rows: int | None = None,
) -> SentenceTask:
    """A GLUE task of `glue.GLUE`, trained on its training split and scored on its validation split.

    tokenizer: the checkpoint's (`small_text.tokenizer`).  dataset: a folder with the task's Parquet
    files; None: from `data_root` or PREHAB_DATA, else the hub.  max_length: None is 128 tokens.
    test_rows: score on so many of each split's rows, the same ones always (None or 0: all).
    Raises as `data.load` does, and ValueError for labels of -1 (a test set), or outside the task's
    classes.
    """
    task = task_named(name)
    if tokenizer is None:
        raise ValueError(
            f"task {name!r} needs the tokenizer of its checkpoint: pass tokenizer=small_text.tokenizer(...)"
        )
    max_length = _length(max_length, 128, tokenizer)
    source = data.DATASETS[f"glue/{name}"]
    place = dataset or f"glue/{name}"
    splits = {
        split: _rows(
            data.load(place, split, data_root, source),
            task.columns,
            len(task.labels),
            f"{place} {split!r}",
        )
        for split in task.splits
    }
    scored = {column: _capped(splits[split], test_rows) for column, split in task.scored.items()}
    whole = {column: len(splits[split]) for column, split in task.scored.items()}
    train, where, setting = (
        splits["train"],
        f"GLUE's validation split ({place})",
        (tokenizer, batch, max_length),
    )
    return _task(
        name, task, train, train, scored, whole, where, setting, dict(lr=task.lr, epochs=3)
    )


@mean_over_samples
def sentence_loss(model: nn.Module, batch) -> Tensor:
    """Mean cross-entropy in nats, or the mean squared error of a head with one output: the task
    loss of Table III.
    """
    logits, labels = logits_and_labels(model, move(batch, device_of(model)))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits))
    return nn.functional.cross_entropy(logits, labels)


def predict(model: nn.Module, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes (N,), or real values for a head with one output, and the labels (N,).
    Raises as `each_answer` does.
    """
    answers = [
        (logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1), labels)
        for logits, labels in each_answer(model, batches)
    ]
    said, true = (torch.cat(parts).double().cpu().numpy() for parts in zip(*answers, strict=True))
    return said, true


def _task(name, task, training, chosen_on, scored, whole, where, setting, recipe) -> SentenceTask:
    """task: its row in `GLUE` or `PROSE`.  whole: rows of each column before the cap.  where: what
    is scored, for the protocol.
    """
    tokenizer, batch, max_length = setting
    return SentenceTask(
        name=name,
        metric=task.metric,
        labels=task.labels,
        tokenizer=tokenizer,
        batch=batch,
        max_length=max_length,
        training=training,
        chosen_on=chosen_on,
        scored=scored,
        protocol=_protocol(task.metric, scored, whole, where, tokenizer, max_length),
        recipe=recipe,
    )


def _rows(loaded, columns: tuple[str, ...], classes: int, name: str) -> Rows:
    labels = tuple(loaded["label"])
    if not classes and all(isinstance(label, int) for label in labels):
        labels = tuple(map(float, labels))
    rows = Rows(tuple(tuple(loaded[column]) for column in columns), labels)
    check_rows(rows, name, classes)
    return rows


def _capped(rows: Rows, most: int | None) -> Rows:
    if not most:
        return rows
    check_whole(1, test_rows=most)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows.take(order[:most].tolist())


def _length(given: int | None, usual: int, tokenizer) -> int:
    if given is None:
        return min(usual, tokenizer.model_max_length)
    check_whole(8, max_length=given)
    if given > tokenizer.model_max_length:
        raise ValueError(
            f"max_length = {given}: the tokenizer's model takes at most {tokenizer.model_max_length}"
        )
    return given


def _protocol(
    metric: str, scored: dict, whole: dict, where: str, tokenizer, max_length: int
) -> str:
    counts = ", ".join(
        f"{column} {len(rows)} of {whole[column]} rows" for column, rows in scored.items()
    )
    cut = sum(count_longer(rows, tokenizer, max_length) for rows in scored.values())
    return f"{metric} on {where}: {counts}; at most {max_length} tokens a row, {cut} rows are longer and cut off there"
