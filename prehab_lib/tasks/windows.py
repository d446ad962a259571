"""Text as windows of tokens: the ones that are scored, in order, and the ones that are drawn."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prehab_lib.save.hub import one_line
from prehab_lib.tasks.drawn import Drawn
from prehab_lib.tasks.files import check_texts


def token_stream(texts: Iterable[str | list[dict]], tokenizer, chat: bool = False) -> Tensor:
    """(N,) int64: texts joined by blank lines, with special tokens; or chats by their template.

    A chat is a list of turns, {"role": ..., "content": ...}.  chat, or where there is one: a text
    is a user's turn.  Raises ValueError for no text, or with the number of a chat that is refused.
    """
    ids = []
    if chat or (isinstance(texts, list) and any(isinstance(text, list) for text in texts)):
        for number, found in enumerate([texts] if isinstance(texts, str) else texts, 1):
            turns = [{"role": "user", "content": found}] if isinstance(found, str) else found
            try:
                if not tokenizer.chat_template:
                    raise ValueError("the tokenizer has no chat template")
                rendered = tokenizer.apply_chat_template(turns, tokenize=False)
            except Exception as problem:  # whatever a template raises
                raise ValueError(f"line {number} is refused: {one_line(problem)}") from problem
            ids += tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
    elif (joined := "\n\n".join(check_texts(texts))).strip():
        ids = tokenizer(joined, verbose=False, return_attention_mask=False)["input_ids"]
    if not ids:
        raise ValueError("there is no text to tokenize: check the data set")
    return torch.tensor(ids)


@dataclass(frozen=True, eq=False)
class Windows:
    ids: Tensor  # (N, T): non-overlapping windows in the order of the text
    dropped: int  # tokens left over at the end
    whole: int  # windows the text has, of which N are scored

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        return f"{len(self)} of {self.whole} windows ({self.dropped} tokens dropped)"

    def batches(self, batch: int) -> Iterator[dict[str, Tensor]]:
        """All windows once, `batch` at a time, as {"input_ids": (B, T)}."""
        return ({"input_ids": ids} for ids in self.ids.split(batch))


def cut(
    stream: Tensor,
    window: int,
    most: int | None = None,
    what: str = "the text",
    lead: int | None = None,
) -> Windows:
    """Windows of a stream (N,), `most` of them, evenly spread (None or 0: all); or ValueError.

    lead: a token that stands in front of each window and counts as one of its tokens.
    """
    _check_length(stream, window, what)
    own = window if lead is None else window - 1
    whole = len(stream) // own
    ids = stream[: whole * own].view(whole, own)
    if most and most < whole:
        ids = ids[torch.arange(most) * whole // most]
    return Windows(_led(ids, lead), len(stream) - whole * own, whole)


def drawn_windows(
    stream: Tensor, window: int, batch: int, seed: int, count: int, lead: int | None = None
) -> Drawn:
    """`count` batches of windows at random places of a stream (N,); lead, errors: as of `cut`."""
    _check_length(stream, window, "the text to draw from")
    every = stream.unfold(0, window if lead is None else window - 1, 1)  # (places, T), a view
    drawn = (len(every), batch, seed, count)
    return Drawn(lambda at: {"input_ids": _led(every[at], lead)}, *drawn, replacement=True)


def _led(ids: Tensor, lead: int | None) -> Tensor:
    return ids if lead is None else nn.functional.pad(ids, (1, 0), value=lead)


def _check_length(stream: Tensor, window: int, what: str) -> None:
    if len(stream) < window:
        few = f"{len(stream)} tokens, fewer than one window of {window}"
        raise ValueError(f"{what} has {few}: give more text, or a smaller window")
