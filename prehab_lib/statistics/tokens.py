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
        self.mask: Tensor | None = None
        self.decoder_mask: Tensor | None = None
        self.states: Tensor | None = None  # what the decoder reads of the encoder
        self.towers: list[str] = []  # those whose forward runs now, the innermost last

    def start_batch(self, batch) -> None:
        self.mask, self.states, self.towers = padding_mask(batch), None, []
        self.decoder_mask = padding_mask(batch, "decoder_attention_mask")

    def rows(self, x: Tensor) -> Tensor:
        """(..., n) -> (tokens, n), as `batches.token_rows`."""
        return token_rows(x, self.mask_of(x))

    def mask_of(self, x: Tensor) -> Tensor | None:
        """The mask (B, T) of the sequence that x belongs to, None where all of it is real."""
        tower = self.towers[-1] if self.towers else ""
        if tower == "senses":
            return None
        if not self.both or tower == "encoder" or _same_memory(x, self.states):
            return self.mask
        return self.decoder_mask

    @contextmanager
    def hooks(self) -> Iterator[None]:
        with ExitStack() as undo:
            towers = {name: "senses" for name in senses(self.model)}
            towers = [(self.model.get_submodule(name), kind) for name, kind in towers.items()]
            if self.both:
                towers.append((self.model.get_encoder(), "encoder"))
                towers.append((self.model.get_decoder(), "decoder"))
            for module, kind in towers:
                if module is self.model:
                    continue

                def enter(module, args, kwargs, kind: str = kind) -> None:
                    self.towers.append(kind)
                    self.states = kwargs.get("encoder_hidden_states", self.states)

                def leave(module, args, out) -> None:
                    self.towers.pop()

                undo.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                undo.callback(module.register_forward_hook(leave, always_call=True).remove)
            yield


def aligned(model: nn.Module, batch):
    """A batch for statistics of tokens: padding on the right, where transformers' models expect it.

    Labels and what is a decoder's stay as they are, and all of it for a model of another library.
    """
    mask = padding_mask(batch)
    if mask is None or bool(mask[:, 0].all()) or not hasattr(model, "main_input_name"):
        return batch
    order = mask.long().argsort(dim=1, descending=True, stable=True)  # real tokens first

    def turn(name: str, value):
        own = name != "labels" and not name.startswith("decoder_")
        if not own or not isinstance(value, Tensor) or value.shape[:2] != mask.shape:
            return value
        return value[torch.arange(len(order), device=order.device)[:, None], order]

    return {name: turn(name, value) for name, value in batch.items()}


def is_encoder_decoder(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) and hasattr(model, "get_encoder")


def senses(model: nn.Module) -> list[str]:
    """The models inside a transformers model whose input is no text."""
    inner = {name: getattr(module, "main_input_name", "") for name, module in model.named_modules()}
    return [name for name, reads in inner.items() if name and reads not in ("", "input_ids")]


def _same_memory(x: Tensor, other: Tensor | None) -> bool:
    return (
        other is not None and x.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )
