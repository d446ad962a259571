"""A sentence task: batches of one data set for one tokenizer, and how it is scored."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from statistics import fmean

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler

from prehab_lib.batches import device_of, mean_over_samples, move
from prehab_lib.evaluate import each_answer, logits_and_labels
from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.tasks import data, prose, prose_tasks
from prehab_lib.tasks.drawn import Drawn, Rows, Task, encode, shuffled_rows
from prehab_lib.tasks.glue import GLUE
from prehab_lib.tasks.metrics import Score, score
from prehab_lib.tasks.prose_tasks import PROSE
from prehab_lib.tasks.tokenizers import train_wordpiece

SCORED_BATCH = 64  # rows scored at a time; the score does not depend on it
RANDOM_DRAWS = 20  # the random baseline is their mean


@dataclass(frozen=True)
class SentenceTask(Task):
    """Batches are as `drawn.encode` makes them."""

    name: str
    metric: str
    labels: tuple[str, ...]  # class names, empty for a regression
    tokenizer: object
    batch: int
    max_length: int
    training: Rows
    chosen_on: Rows
    scored: dict[str, Rows]  # by column of the table
    protocol: str  # how the score is taken, one sentence, stored with every number
    recipe: dict  # arguments of `finetune.fine_tune`

    @property
    def outputs(self) -> int:
        """Size of the classifier: one output a class, or one for a regression."""
        return len(self.labels) or 1

    @property
    def epoch(self) -> int:
        """Batches in one pass over the training rows."""
        return -(-len(self.training) // self.batch)

    def draw(self, purpose: str, seed: int, count: int) -> Drawn:
        rows = self.chosen_on if purpose == "validation" else self.training
        make = partial(encode, rows, self.tokenizer, self.max_length)
        return Drawn(make, len(rows), self.batch, seed, count)

    def scores(self, model: nn.Module) -> dict[str, Score]:
        """Column of the table -> the metric on its rows.  Raises as `predict` does."""
        said = {column: predict(model, self.once(rows)) for column, rows in self.scored.items()}
        return {column: score(self.metric, *answers) for column, answers in said.items()}

    def score(self, model: nn.Module) -> float:
        """The one number of the task: of its column, or the mean of MNLI's two."""
        return fmean(map(float, self.scores(model).values()))

    def baselines(self) -> dict[str, dict[str, Score]]:
        """By column, "constant": the best unchanging answer; "random": labels as in training."""
        labels = np.asarray(self.training.labels)
        answers = range(len(self.labels)) if self.labels else [labels.mean()]
        draw = np.random.default_rng(0)
        constant, drawn = {}, {}
        for column, rows in self.scored.items():
            judge = partial(score, self.metric, labels=rows.labels)
            same = [judge(np.full(len(rows), answer)) for answer in answers]
            constant[column] = max(same, key=float)
            guesses = [judge(draw.choice(labels, len(rows))) for _ in range(RANDOM_DRAWS)]
            drawn[column] = Score(fmean(map(float, guesses)))
        return {"constant": constant, "random": drawn}

    def once(self, rows: Rows) -> Iterator[dict[str, Tensor]]:
        """Every row once, shortest first, so that little is padded."""
        lengths = [sum(map(len, texts)) for texts in zip(*rows.texts, strict=True)]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        for indices in BatchSampler(order, SCORED_BATCH, drop_last=False):
            yield encode(rows, self.tokenizer, self.max_length, indices)


def open_task(
    name: str, batch: int, tokenizer=None, *, data_root=None, max_length=None, test_rows=None
) -> SentenceTask:
    """The task of a name: an embedded one of `PROSE`, or one of `GLUE`, scored on its validation.

    tokenizer: the checkpoint's; None, for embedded ones, a small one.  max_length: None is 48
    tokens, of GLUE 128.  test_rows: score so many of each split, the same always (None or 0: all).
    Raises as `data.load` does, and ValueError for an unknown name, a bad number or a foreign label.
    """
    check_whole(1, batch=batch)
    check_whole(0, test_rows=test_rows or 0)
    check_choice("task", name, (*PROSE, *GLUE))
    if name in PROSE:
        task, usual = PROSE[name], 48
        tokenizer = prose_wordpiece() if tokenizer is None else tokenizer
        training, chosen_on, tested = (prose_tasks.rows(name, part) for part in prose.PARTS)
        splits = {name: tested}
        where = f"held-out modules of the standard library (checksum {prose.checksum()})"
        recipe = dict(lr=task.lr, steps=task.steps, beta2=task.beta2, warmup=0.3)
    else:
        task, usual = GLUE[name], 128
        if tokenizer is None:
            raise ValueError(f"task {name!r} needs a tokenizer: pass tokenizers.tokenizer_of(...)")
        training = chosen_on = _glue_rows(name, "train", data_root)
        splits = {key: _glue_rows(name, split, data_root) for key, split in task.scored.items()}
        where = f"GLUE's validation split (glue/{name})"
        recipe = dict(lr=task.lr, epochs=3)
    most = tokenizer.model_max_length
    length = min(usual, most) if max_length is None else max_length
    check_whole(8, max_length=length)
    if length > most:
        raise ValueError(f"max_length = {length}: the tokenizer's model takes at most {most}")
    scored, counts, longer = {}, [], 0
    for column, rows in splits.items():
        some = rows.take(shuffled_rows(len(rows))[:test_rows]) if test_rows else rows
        scored[column] = some
        counts.append(f"{column} {len(some)} of {len(rows)} rows")
        tokens = tokenizer(*map(list, some.texts), verbose=False)["input_ids"]
        longer += sum(len(ids) > length for ids in tokens)
    limit = f"at most {length} tokens a row, {longer} rows are longer and cut off there"
    protocol = f"{task.metric} on {where}: {', '.join(counts)}; {limit}"
    about = (name, task.metric, task.labels, tokenizer, batch, length)
    return SentenceTask(*about, training, chosen_on, scored, protocol, recipe)


@cache
def prose_wordpiece():
    """The tokenizer of the embedded tasks, learnt from their training part alone."""
    return train_wordpiece(prose.sentences("train"))


@mean_over_samples
def sentence_loss(model: nn.Module, batch) -> Tensor:
    """Mean cross-entropy in nats, or squared error of one output: the loss of Table III."""
    logits, labels = logits_and_labels(model, move(batch, device_of(model)))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits))
    return nn.functional.cross_entropy(logits, labels)


def predict(model: nn.Module, batches: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Predicted classes (N,), or values of one output, and labels, as `each_answer` checks them."""
    predictions, labels = [], []
    for logits, right in each_answer(model, batches):
        predictions.append(logits.squeeze(-1) if logits.shape[-1] == 1 else logits.argmax(-1))
        labels.append(right)
    return tuple(torch.cat(parts).double().cpu().numpy() for parts in (predictions, labels))


def _glue_rows(name: str, split: str, data_root: str | None) -> Rows:
    """Raises ValueError naming what no model can be trained or scored on."""
    task, place = GLUE[name], f"glue/{name}"
    loaded, what = data.load(place, split, data_root, data.DATASETS[place]), f"{place} {split!r}"
    names = getattr(loaded.features["label"], "names", None) or task.labels
    if sorted(names) == sorted(task.labels) and [*names] != [*task.labels]:
        order = f"its classes {', '.join(names)}, and the task {', '.join(task.labels)}"
        raise ValueError(f"{what} numbers {order}: write its labels in the task's order")
    texts, labels = tuple(tuple(loaded[column]) for column in task.columns), tuple(loaded["label"])
    if not labels:
        raise ValueError(f"{what} has no rows: check its files")
    if not all(isinstance(text, str) for column in texts for text in column):
        raise ValueError(f"{what} has a row without text: every row must hold text")
    hidden, classes = labels.count(-1), range(len(task.labels))
    if hidden == len(labels) or (classes and hidden):  # a regression may have a -1
        raise ValueError(f"{what} has labels of -1, which hide the answers: score another split")
    wanted = f"classes 0 to {len(classes) - 1}" if classes else "a finite number a row"
    for label in labels:
        known = not classes or label in classes
        if not (isinstance(label, int | float) and math.isfinite(label) and known):
            raise ValueError(f"{what} has the label {label!r}: its task wants {wanted}")
    return Rows(texts, tuple(map(int if classes else float, labels)))
