"""Block influence: how much a transformer block turns what passes through it."""

import re
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from prehab_lib.batches import padding_mask
from prehab_lib.statistics.activations import token_rows

ALONE = 1.0  # a layer in no repeated block: as if the block had turned its input by a right angle


class BlockInfluence:
    """mean over tokens of 1 − cos(h, block(h)) for every block that holds one of the layers;
    padding is left out.

    A block is the innermost numbered module around a layer ("blocks.3" of "blocks.3.attn.qkv").
    Used as a context manager around forward passes.  Source: ShortGPT's block influence, as
    Swift-SVD (arXiv 2604.01609) uses it for its ranks.
    """

    def __init__(self, model: nn.Module, layers):
        self.model, self.blocks = model, {name: block_of(name) for name in layers}
        self.total: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self.entered: dict[str, Tensor | None] = {}
        self.mask: Tensor | None = None

    def __enter__(self) -> "BlockInfluence":
        with ExitStack() as hooks:
            for block in sorted({block for block in self.blocks.values() if block is not None}):
                module = self.model.get_submodule(block)
                hooks.callback(
                    module.register_forward_pre_hook(self._before(block), with_kwargs=True).remove
                )
                hooks.callback(module.register_forward_hook(self._after(block)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._hooks.close()

    def start_batch(self, batch) -> None:
        self.mask = padding_mask(batch)

    def _before(self, block: str):
        def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
            given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            hidden = next(given, None)
            # A copy: a block may add to its input in place.
            self.entered[block] = None if hidden is None else token_rows(hidden, self.mask).clone()

        return keep

    def _after(self, block: str):
        def compare(module: nn.Module, args: tuple, out) -> None:
            before, after = (
                self.entered.pop(block),
                out[0] if isinstance(out, tuple | list) else out,
            )
            if (
                before is not None
                and isinstance(after, Tensor)
                and after.shape[-1] == before.shape[-1]
            ):
                after = token_rows(after, self.mask)
                if after.shape == before.shape:
                    self._add(block, before, after)

        return compare

    def _add(self, block: str, before: Tensor, after: Tensor) -> None:
        cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        self.total[block] = self.total.get(block, 0.0) + float((1 - cosine).double().sum())
        self.tokens[block] = self.tokens.get(block, 0) + len(cosine)

    def result(self) -> dict[str, float]:
        """layer -> influence of its block; `ALONE` for a layer in no block, or in one that changes
        the width.
        """
        found = {block: self.total[block] / self.tokens[block] for block in self.total}
        return {name: found.get(block, ALONE) for name, block in self.blocks.items()}


def block_of(layer: str) -> str | None:
    """ "blocks.3.attn.qkv" -> "blocks.3"; None for a layer in no numbered module."""
    inside = re.match(r"(.*(?:^|\.)\d+)\.", layer)
    return inside.group(1) if inside else None
