"""Instructions and their answers, for rehab: prompts are read, only answers are learnt."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
from torch import Tensor

from prehab_lib.batches import IGNORED
from prehab_lib.inputs import check_whole
from prehab_lib.tasks import data

MAX_LENGTH = 256  # tokens of SVD-LLM's scripts
HELD_OUT = 2000  # validation rows of SVD-LLM's scripts, or a tenth where there are fewer

_HEAD = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
_PLAIN = _HEAD.format("") + "### Instruction:\n{}\n\n### Response:\n"
_WITH_INPUT = (
    _HEAD.format(", paired with an input that provides further context")
    + "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)


@dataclass(frozen=True, eq=False)
class Instruction:
    """ids: prompt, answer and EOS, cut off at the longest length.  prompt: how many of them are the
    prompt's.
    """

    ids: tuple[int, ...]
    prompt: int


class InstructionBatches:
    """`count` batches out of one shuffled pass over the rows after another, the same ones at every
    pass.

    A batch is a dict: input_ids (B, T), attention_mask (B, T), labels (B, T) with -100 on prompts
    and padding, which is on the right.  T is the longest of the batch.
    """

    def __init__(self, rows: tuple[Instruction, ...], pad: int, batch: int, seed: int, count: int):
        self.rows, self.pad, self.batch, self.seed, self.count = rows, pad, batch, seed, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        passes = (
            torch.randperm(len(self.rows), generator=generator).tolist() for _ in repeat(None)
        )
        stream = chain.from_iterable(passes)
        for _ in range(self.count):
            yield encode([self.rows[i] for i in islice(stream, self.batch)], self.pad)


def encode(rows: list[Instruction], pad: int) -> dict[str, Tensor]:
    """Rows as one batch, as `InstructionBatches` describes it."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for i, row in enumerate(rows):
        length = len(row.ids)
        ids[i, :length] = torch.tensor(row.ids)
        mask[i, :length] = 1
        labels[i, row.prompt : length] = ids[i, row.prompt : length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@dataclass(frozen=True, eq=False)
class InstructionData:
    """train and validation (seed, count): batches as `InstructionBatches` makes them.  left_out:
    rows without a scored token.

    epoch: batches in one pass over the training rows.  about: one sentence for the record.
    """

    name: str
    batch: int
    training: tuple[Instruction, ...]
    held_out: tuple[Instruction, ...]
    left_out: int
    pad: int
    about: str

    @property
    def epoch(self) -> int:
        return -(-len(self.training) // self.batch)

    def train(self, seed: int, count: int) -> InstructionBatches:
        return InstructionBatches(self.training, self.pad, self.batch, 4000 + seed, count)

    def validation(self, seed: int, count: int) -> InstructionBatches:
        return InstructionBatches(self.held_out, self.pad, self.batch, 5000 + seed, count)


def prompt_of(instruction: str, input: str = "") -> str:
    """Stanford Alpaca's prompt, with or without an input."""
    return _WITH_INPUT.format(instruction, input) if input.strip() else _PLAIN.format(instruction)


def open_instructions(
    name: str,
    tokenizer,
    batch: int,
    *,
    data_root: str | None = None,
    dataset: str | None = None,
    max_length: int = MAX_LENGTH,
    rows: int | None = None,
) -> InstructionData:
    """The instructions of a name: "prose" is embedded, "alpaca" and "alpaca-cleaned" are of
    `data.DATASETS`.

    tokenizer: of the model that learns.  max_length: tokens of prompt and answer, the rest is cut
    off; rows whose prompt fills it, and rows without an answer, are left out.  dataset: a folder
    with such Parquet files instead.  rows: take the first so many of the shuffled training rows
    (None or 0: all).
    Alpaca has one part: 2,000 rows, or a tenth, are held out by a fixed shuffle.  The embedded
    questions are split by module. Raises as `data.load` does, and ValueError for an unknown name, a
    bad number, or where no row is left.
    """
    check_whole(1, batch=batch)
    check_whole(8, max_length=max_length)
    check_whole(0, rows=rows or 0)
    if name == "prose":
        from prehab_lib.tasks.questions import questions

        parts = [questions("train"), questions("validation")]
        source = "questions about documented functions of the standard library"
    elif name in ("alpaca", "alpaca-cleaned"):
        parts, source = _alpaca(dataset or name, name, data_root), dataset or name
    else:
        raise ValueError(
            f"instructions = {name!r} is not known: choose one of prose, alpaca, alpaca-cleaned"
        )
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    training, held_out = (_tokenized(part, tokenizer, max_length) for part in parts)
    left_out = sum(map(len, parts)) - len(training) - len(held_out)
    if not training or not held_out:
        raise ValueError(
            f"{source} has no row whose answer begins within max_length = {max_length} tokens: raise it"
        )
    training = training[:rows] if rows else training
    about = (
        f"{len(training)} {source}: prompts masked, at most {max_length} tokens, {left_out} rows without a scored token left "
        f"out, {len(held_out)} rows held out for validation"
    )
    return InstructionData(name, batch, training, held_out, left_out, pad, about)


def _alpaca(place: str, name: str, data_root: str | None) -> list[list[tuple[str, str]]]:
    """[training, validation] pairs of prompt and answer, shuffled."""
    loaded = data.load(place, "train", data_root, data.DATASETS[name])
    columns = [list(loaded[column]) for column in ("instruction", "input", "output")]
    pairs = [
        (prompt_of(instruction or "", given or ""), answer or "")
        for instruction, given, answer in zip(*columns, strict=True)
    ]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    first = min(HELD_OUT, len(pairs) // 10)
    shuffled = [pairs[i] for i in order]
    return [shuffled[first:], shuffled[:first]]


def _tokenized(pairs: list[tuple[str, str]], tokenizer, max_length: int) -> tuple[Instruction, ...]:
    pairs = [(prompt, answer) for prompt, answer in pairs if answer.strip()]
    if not pairs:
        return ()
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = tokenizer([prompt for prompt, _ in pairs], verbose=False)["input_ids"]
    wholes = tokenizer([prompt + answer for prompt, answer in pairs], verbose=False)["input_ids"]
    found = []
    for prompt, whole in zip(prompts, wholes, strict=True):
        # What both begin with: a token that spans the border belongs to the answer, an EOS after
        # the prompt to neither.
        shared = next(
            (i for i, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other),
            None,
        )
        shared = min(len(prompt), len(whole)) if shared is None else shared
        whole = whole if whole[-1:] == end else whole + end
        if shared < min(len(whole), max_length):
            found.append(Instruction(tuple(whole[:max_length]), shared))
    return tuple(found)
