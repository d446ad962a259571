"""Text as windows of tokens: the ones that are scored, in order, and the ones that are drawn."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def token_stream(texts: Iterable[str], tokenizer) -> Tensor:
    """(N,) int64: the texts joined by blank lines and tokenized once, with the special tokens this
    tokenizer adds.

    LLaMA's adds BOS in front, GPT-2's adds nothing.  Raises ValueError where there is no text.
    """
    joined = "\n\n".join(texts)
    ids = (
        tokenizer(joined, verbose=False, return_attention_mask=False)["input_ids"]
        if joined.strip()
        else []
    )
    if not ids:
        raise ValueError("there is no text to tokenize: check the data set")
    return torch.tensor(ids)


@dataclass(frozen=True, eq=False)
class Windows:
    """ids (N, T): non-overlapping windows in the order of the text, all of one length.  dropped:
    tokens left over at the end.

    whole: windows the text has; N is smaller where only some are scored.
    """

    ids: Tensor
    dropped: int
    whole: int

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch: int) -> Iterator[dict[str, Tensor]]:
        """All windows once, `batch` at a time, as {"input_ids": (B, T)}."""
        return ({"input_ids": ids} for ids in self.ids.split(batch))


def cut(stream: Tensor, window: int, most: int | None = None, what: str = "the text") -> Windows:
    """A stream (N,) as windows of `window` tokens.  most: only so many, evenly spread over the text
    (None or 0: all).

    Raises ValueError where the stream is shorter than one window.
    """
    whole = len(stream) // window
    _check_length(whole, len(stream), window, what)
    ids = stream[: whole * window].view(whole, window)
    if most and most < whole:
        ids = ids[torch.arange(most) * whole // most]
    return Windows(ids, len(stream) - whole * window, whole)


class Draws:
    """`count` batches of windows at random places of a stream (N,), the same ones at every pass:
    {"input_ids": (B, T)}.

    bos: put this token in front of each window, which then has T - 1 tokens of the text; SVD-LLM's
    calibration does. Raises ValueError where the stream is shorter than one window.
    """

    def __init__(
        self, stream: Tensor, window: int, batch: int, seed: int, count: int, bos: int | None = None
    ):
        _check_length(len(stream) // window, len(stream), window, "the text to draw from")
        self.stream, self.window, self.batch = stream, window, batch
        self.seed, self.count, self.bos = seed, count, bos

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        places = torch.arange(self.window)
        for _ in range(self.count):
            starts = torch.randint(
                len(self.stream) - self.window + 1, (self.batch, 1), generator=generator
            )
            ids = self.stream[starts + places]  # (B, T)
            if self.bos is not None:
                ids = torch.cat([torch.full_like(starts, self.bos), ids[:, :-1]], dim=1)
            yield {"input_ids": ids}


def _check_length(whole: int, tokens: int, window: int, what: str) -> None:
    if not whole:
        raise ValueError(
            f"{what} has {tokens} tokens, fewer than one window of {window}: give more text, or a smaller window"
        )
