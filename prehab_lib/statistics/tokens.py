"""Which tokens of what a module reads are real: a mask belongs to one sequence of a model.

In an encoder-decoder `attention_mask` is the encoder's, and `decoder_attention_mask` the decoder's.
Cross-attention reads both: its keys and values are encoder tokens.  A tower that looks at pixels or
hears sound has tokens of its own, none of which is padding.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from prehab_lib.batches import padding_mask, token_rows


class RealTokens:
    """`rows(x)`: the real tokens of a tensor, wherever in the model it is; inside `hooks()`."""

    def __init__(self, model: nn.Module):
        self.model, self.both = model, is_encoder_decoder(model)

    def start_batch(self, batch) -> None:
        self.mask, self.decoder_mask = (
            padding_mask(batch, f"{whose}attention_mask") for whose in ("", "decoder_")
        )
        self.states: Tensor | None = None  # what the decoder reads of the encoder
        self.towers: list[str] = []  # those whose forward runs now, the innermost last

    def rows(self, x: Tensor) -> Tensor:
        """(..., n) -> (tokens, n), as `batches.token_rows`."""
        return token_rows(x, self.mask_of(x))

    def mask_of(self, x: Tensor) -> Tensor | None:
        """The mask (B, T) of the sequence that x belongs to, None where all of it is real."""
        tower = self.towers[-1] if self.towers else "decoder"
        if tower == "senses":
            return None
        of_encoder = tower == "encoder" or _memory(x) == _memory(self.states)
        return self.mask if of_encoder or not self.both else self.decoder_mask

    @contextmanager
    def hooks(self) -> Iterator[None]:
        towers = [(self.model.get_submodule(name), "senses") for name in senses(self.model)]
        if self.both:
            towers += [(self.model.get_encoder(), "encoder"), (self.model.get_decoder(), "decoder")]
        with ExitStack() as undo:
            for module, kind in towers:

                def enter(module, args, kwargs, kind: str = kind) -> None:
                    self.towers.append(kind)
                    self.states = kwargs.get("encoder_hidden_states", self.states)

                def leave(module, args, out) -> None:
                    self.towers.pop()

                undo.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def senses(model: nn.Module) -> list[str]:
    """The models inside a transformers model whose input is no text."""
    reads = {name: getattr(part, "main_input_name", "") for name, part in model.named_modules()}
    return [name for name in reads if name and reads[name] not in ("", "input_ids")]


def _memory(x: Tensor | None) -> int:
    return 0 if x is None else x.untyped_storage().data_ptr()


def aligned(model: nn.Module, batch):
    """A batch for statistics of tokens: padding on the right, where transformers' models expect it.

    Labels and what is a decoder's stay as they are, and all of it for a model of another library.
    """
    mask = padding_mask(batch)
    if mask is None or bool(mask[:, 0].all()) or not hasattr(model, "main_input_name"):
        return batch
    order = mask.long().argsort(dim=1, descending=True, stable=True)  # real tokens first
    turned = dict(batch)
    for name, value in batch.items():
        own = name != "labels" and not name.startswith("decoder_") and isinstance(value, Tensor)
        if own and value.shape[:2] == mask.shape:
            turned[name] = value[torch.arange(len(order), device=order.device)[:, None], order]
    return turned
