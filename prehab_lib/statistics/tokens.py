"""Which tokens of what a module reads are real: a mask belongs to one sequence of a model.

In an encoder-decoder `attention_mask` is the encoder's, and `decoder_attention_mask` the decoder's.
Cross-attention reads both: its keys and values are encoder tokens.  A tower that looks at pixels or
hears sound has tokens of its own, none of which is padding.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

# For every number that a least-squares problem fits; fewer leave its small directions to chance.
TOKENS_EACH = 10


class RealTokens:
    """`rows(x)`: the real tokens of a tensor, wherever in the model it is; inside `hooks()`."""

    def __init__(self, model: nn.Module):
        self.model, self.both = model, is_encoder_decoder(model)

    def start_batch(self, batch) -> None:
        self.mask = padding_mask(batch, "attention_mask")
        self.decoder_mask = padding_mask(batch, "decoder_attention_mask")
        self.states: Tensor | None = None  # what the decoder reads of the encoder
        self.towers: list[str] = []  # those whose forward runs now, the innermost last

    def rows(self, x: Tensor) -> Tensor:
        """(..., n) -> (tokens, n), as `token_rows`."""
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


def padding_mask(batch, name: str = "attention_mask") -> Tensor | None:
    """(B, T), True where a token is real; None where nothing is padded.

    Raises ValueError for a mask of another kind, which could be read the wrong way round.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2 and _is_padding(*batch):
        dict_form = '{"input_ids": ids, "attention_mask": mask}'
        raise ValueError(f"a batch (ids, mask) would count its padding: give {dict_form}")
    mask = batch.get(name) if isinstance(batch, Mapping) else None
    if mask is None:
        return None
    if mask.ndim != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        problem = f"{name} has shape {tuple(mask.shape)} or values other than 0 and 1"
        remedy = "give one of shape (batch, tokens), 1 for a real token and 0 for padding"
        raise ValueError(f"{problem}: {remedy}")
    return mask.bool()


def _is_padding(ids, mask) -> bool:
    """Whole numbers (B, T) and a mask of them: zeros at one end of rows, none of zeros alone."""
    if not all(isinstance(value, Tensor) and value.ndim == 2 for value in (ids, mask)):
        return False
    if ids.is_floating_point() or ids.shape != mask.shape:
        return False
    steps = mask.long().diff(dim=1)
    binary = bool(((mask == 0) | (mask == 1)).all()) and bool((mask == 0).any())
    one_end = bool((steps <= 0).all()) or bool((steps >= 0).all())
    return binary and one_end and bool((mask != 0).any(dim=1).all())


def token_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """(..., n) -> (tokens, n) without the padding.  Raises ValueError where nothing is left."""
    if mask is not None and x.ndim == 3 and x.shape[:2] == mask.shape:
        x = x[mask]
    elif mask is not None and x.ndim == 3 and x.shape[:2] == mask.T.shape:  # tokens first
        x = x[mask.T]
    elif mask is not None and x.ndim == 2 and x.shape[0] == mask.numel() != mask.shape[0]:
        x = x[mask.flatten()]
    if x.numel() == 0:
        raise ValueError("a calibration batch has no token left after its padding is taken out")
    return x.reshape(-1, x.shape[-1])


def warn_if_few_tokens(
    what: str, counts: Mapping[str, tuple[int, int]], per: str, stacklevel: int
) -> None:
    """Warns of layers that saw fewer than 10 tokens for each of their channels or ranks.

    counts: layer -> (tokens, channels or rank).  what, per: "layers saw", "rank".
    """
    few = [name for name, (tokens, size) in counts.items() if tokens < TOKENS_EACH * size]
    if few:
        least = min(few, key=lambda name: counts[name][0] / counts[name][1])
        tokens, size = counts[least]
        warnings.warn(
            f"{len(few)} of {len(counts)} {what} fewer than {TOKENS_EACH} tokens per {per}; the "
            f"least is {least!r} with {tokens} tokens for {size}: use more calibration data",
            stacklevel=stacklevel + 1,
        )
