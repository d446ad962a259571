"""Labelled sentences as rows, and rows as batches for one tokenizer."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, repeat

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Rows:
    """texts: one tuple of strings a column (one column, or two for pairs).  labels: a class or a
    real value a row.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: tuple[int | float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Iterable[int]) -> "Rows":
        indices = list(indices)
        return Rows(
            tuple(tuple(column[i] for i in indices) for column in self.texts),
            tuple(self.labels[i] for i in indices),
        )

    @cached_property
    def tokens(self) -> dict:
        """(tokenizer, max_length) -> index -> the row's tokens, of the rows that were asked for."""
        return {}

    @cached_property
    def checksum(self) -> str:
        """Sixteen hexadecimal digits of all texts and labels."""
        digest = hashlib.sha256(repr(self.labels).encode())
        for column in self.texts:
            digest.update("\0".join(column).encode())
        return digest.hexdigest()[:16]


def check_rows(rows: Rows, name: str, classes: int) -> None:
    """Raises ValueError naming what no model can be trained or scored on: no rows, a row without
    text, a bad label.

    classes: number of classes, 0 for a regression.
    """
    if not len(rows):
        raise ValueError(f"{name} has no rows: check its files")
    for column in rows.texts:
        if any(not isinstance(text, str) for text in column):
            raise ValueError(
                f"{name} has a row without text: every text column must hold text in every row"
            )
    if any(label == -1 for label in rows.labels) and (classes or set(rows.labels) == {-1}):
        raise ValueError(
            f"{name} has labels of -1, so its answers are hidden, as in GLUE's test sets: score another split"
        )
    if classes:
        strange = {
            label for label in rows.labels if not isinstance(label, int) or not 0 <= label < classes
        }
        wanted = f"classes 0 to {classes - 1}"
    else:
        strange = {
            label
            for label in rows.labels
            if not isinstance(label, int | float) or not math.isfinite(label)
        }
        wanted = "a finite number a row"
    if strange:
        raise ValueError(
            f"{name} has the label {min(strange, key=repr)!r}: its task wants {wanted}"
        )


class RowBatches:
    """Batches of rows as keyword arguments to `forward`, the same ones at every pass.

    A batch is a dict: input_ids and attention_mask (B, T), token_type_ids where the tokenizer gives
    them, labels (B,) (int64, or float32 for a regression).  T is the longest of the batch, at most
    `max_length` tokens; the rest is cut off.

    With a seed: `count` full batches out of one shuffled pass over the rows after another.
    Without: every row once, shortest first, so that little is padded.
    """

    def __init__(
        self,
        rows: Rows,
        tokenizer,
        batch: int,
        max_length: int,
        seed: int | None = None,
        count: int = 0,
    ):
        self.rows, self.tokenizer, self.batch, self.max_length = rows, tokenizer, batch, max_length
        self.seed, self.count = seed, count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for indices in self._shuffled() if self.seed is not None else self._by_length():
            yield encode(self.rows, self.tokenizer, self.max_length, indices)

    def __len__(self) -> int:
        return self.count if self.seed is not None else math.ceil(len(self.rows) / self.batch)

    def _shuffled(self) -> Iterator[Sequence[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        passes = (
            torch.randperm(len(self.rows), generator=generator).tolist() for _ in repeat(None)
        )
        stream = chain.from_iterable(passes)
        yield from (list(islice(stream, self.batch)) for _ in range(self.count))

    def _by_length(self) -> Iterator[Sequence[int]]:
        length = [sum(len(column[i]) for column in self.rows.texts) for i in range(len(self.rows))]
        order = sorted(range(len(self.rows)), key=length.__getitem__)
        yield from (order[start : start + self.batch] for start in range(0, len(order), self.batch))


def encode(
    rows: Rows, tokenizer, max_length: int, indices: Iterable[int] | None = None
) -> dict[str, Tensor]:
    """Some rows (None: all) as one batch, as `RowBatches` describes it.  A row is tokenized once,
    however many the passes.
    """
    indices = list(range(len(rows)) if indices is None else indices)
    known = rows.tokens.setdefault((tokenizer, max_length), {})
    if new := [i for i in indices if i not in known]:
        columns = [[column[i] for i in new] for column in rows.texts]
        found = tokenizer(*columns, truncation=True, max_length=max_length)
        known |= {i: {key: torch.tensor(found[key][k]) for key in found} for k, i in enumerate(new)}
    side, fill = (
        tokenizer.padding_side,
        {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id},
    )
    batch = {
        key: pad_sequence(
            [known[i][key] for i in indices], True, fill.get(key, 0), padding_side=side
        )
        for key in known[indices[0]]
    }
    labels = [rows.labels[i] for i in indices]
    whole = all(isinstance(label, int) for label in labels)
    return batch | {"labels": torch.tensor(labels, dtype=torch.int64 if whole else torch.float32)}


def count_longer(rows: Rows, tokenizer, max_length: int) -> int:
    """Rows of more than `max_length` tokens, special tokens included."""
    columns = [list(column) for column in rows.texts]
    return sum(len(ids) > max_length for ids in tokenizer(*columns, verbose=False)["input_ids"])
