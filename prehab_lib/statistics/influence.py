"""Block influence: how much a transformer block turns what passes through it."""

import re
from contextlib import ExitStack
from functools import partial

from torch import Tensor, nn

from prehab_lib.batches import padding_mask, token_rows

ALONE = 1.0  # a layer in no repeated block: as if the block had turned its input by a right angle


class BlockInfluence:
    """mean over tokens of 1 − cos(h, block(h)) for every block that holds one of the layers.

    A block is the innermost numbered module around a layer ("blocks.3" of "blocks.3.attn.qkv").
    Used as a context manager around forward passes; padding is left out.  Source: ShortGPT's block
    influence, as Swift-SVD (arXiv 2604.01609) uses it for its ranks.
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
                before, after = partial(self._before, block), partial(self._after, block)
                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(after).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_) -> None:
        self._hooks.close()

    def start_batch(self, batch) -> None:
        self.mask = padding_mask(batch)

    def _before(self, block: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        # A copy: a block may add to its input in place.
        self.entered[block] = token_rows(tensors[0], self.mask).clone() if tensors else None

    def _after(self, block: str, module: nn.Module, args: tuple, out) -> None:
        before, after = self.entered.pop(block), out[0] if isinstance(out, tuple | list) else out
        if before is None or not isinstance(after, Tensor) or after.shape[-1] != before.shape[-1]:
            return
        after = token_rows(after, self.mask)
        if after.shape == before.shape:
            cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            turned = float((1 - cosine).double().sum())
            self.total[block] = self.total.get(block, 0.0) + turned
            self.tokens[block] = self.tokens.get(block, 0) + len(cosine)

    def result(self) -> dict[str, float]:
        """layer -> influence of its block; `ALONE` where no block is, or one changes the width."""
        means = {block: self.total[block] / self.tokens[block] for block in self.total}
        return {name: means.get(block, ALONE) for name, block in self.blocks.items()}


def block_of(layer: str) -> str | None:
    """ "blocks.3.attn.qkv" -> "blocks.3"; None for a layer in no numbered module."""
    inside = re.match(r"(.*(?:^|\.)\d+)\.", layer)
    return inside.group(1) if inside else None
