"""Instructions and their answers, for rehab: prompts are read, only answers are learnt."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prehab_lib.batches import IGNORED
from prehab_lib.inputs import check_choice, check_whole
from prehab_lib.tasks import data, prose
from prehab_lib.tasks.drawn import Drawn, shuffled_rows

MAX_LENGTH = 256  # tokens of SVD-LLM's scripts
HELD_OUT = 2000  # validation rows of SVD-LLM's scripts, or a tenth where there are fewer

_PROMPT = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


class Instruction(NamedTuple):
    ids: tuple[int, ...]  # of prompt, answer and EOS, cut off at the longest length
    prompt: int  # so many of them


@dataclass(frozen=True, eq=False)
class InstructionData:
    """train and validation (seed, count): batches as `encode` makes them."""

    batch: int
    training: list[Instruction]
    held_out: list[Instruction]
    pad: int

    def train(self, seed: int, count: int) -> Drawn:
        return self._draw(self.training, 4000 + seed, count)

    def validation(self, seed: int, count: int) -> Drawn:
        return self._draw(self.held_out, 5000 + seed, count)

    def _draw(self, rows: list[Instruction], seed: int, count: int) -> Drawn:
        return Drawn(partial(encode, rows, self.pad), len(rows), self.batch, seed, count)


def encode(rows: list[Instruction], pad: int, numbers: list[int]) -> dict[str, Tensor]:
    """Rows, padded on the right: input_ids, attention_mask, labels (B, T), -100 but on answers."""
    some = [rows[i] for i in numbers]
    ids = pad_sequence([torch.tensor(row.ids) for row in some], True, pad)
    places = torch.arange(ids.shape[1])
    real = places < torch.tensor([[len(row.ids)] for row in some])
    answer = real & (places >= torch.tensor([[row.prompt] for row in some]))
    labels = ids.masked_fill(~answer, IGNORED)
    return {"input_ids": ids, "attention_mask": real.long(), "labels": labels}


def prompt_of(instruction: str, input: str = "") -> str:
    """Stanford Alpaca's prompt, with or without an input."""
    if not input.strip():
        return _PROMPT.format(more="", instruction=instruction, input="")
    more = ", paired with an input that provides further context"
    return _PROMPT.format(more=more, instruction=instruction, input=f"### Input:\n{input}\n\n")


def open_instructions(
    name: str, tokenizer, batch: int, *, data_root: str | None = None, max_length: int = MAX_LENGTH
) -> InstructionData:
    """The instructions "prose", which are embedded, "alpaca" or "alpaca-cleaned".

    max_length: tokens of prompt and answer, the rest is cut off; rows without an answer before it
    are left out.  Raises as `data.load` does, and ValueError for a bad value or no row.
    """
    check_choice("instructions", name, ("prose", "alpaca", "alpaca-cleaned"))
    check_whole(1, batch=batch)
    check_whole(8, max_length=max_length)
    if name == "prose":
        parts = [prose.questions("train"), prose.questions("validation")]
    else:
        pairs = []
        for row in data.load(name, "train", data_root, data.DATASETS[name]):
            prompt = prompt_of(row["instruction"] or "", row["input"] or "")
            pairs.append((prompt, row["output"] or ""))
        order, first = shuffled_rows(len(pairs)), min(HELD_OUT, len(pairs) // 10)
        parts = [[pairs[i] for i in some] for some in (order[first:], order[:first])]
    training, held_out = (_tokenized(part, tokenizer, max_length) for part in parts)
    if not training or not held_out:
        few = f"no row whose answer begins within max_length = {max_length} tokens"
        raise ValueError(f"instructions {name!r} have {few}: raise it")
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id or 0  # any token will do: it is masked
    return InstructionData(batch, training, held_out, pad)


def _tokenized(pairs: list[tuple[str, str]], tokenizer, max_length: int) -> list[Instruction]:
    pairs = [(prompt, answer) for prompt, answer in pairs if answer.strip()]
    if not pairs:
        return []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    prompts = tokenizer([prompt for prompt, _ in pairs], verbose=False)["input_ids"]
    wholes = tokenizer([prompt + answer for prompt, answer in pairs], verbose=False)["input_ids"]
    rows = []
    for prompt, whole in zip(prompts, wholes, strict=True):
        # What both begin with: a token across the border is the answer's, an EOS between nobody's.
        same = [one == other for one, other in zip(prompt, whole, strict=False)]
        shared = [*same, False].index(False)
        ids = whole if whole[-1:] == end else whole + end
        if shared < min(len(ids), max_length):
            rows.append(Instruction(tuple(ids[:max_length]), shared))
    return rows
