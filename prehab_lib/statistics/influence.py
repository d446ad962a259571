"""Block influence: how much a transformer block turns what passes through it."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

from prehab_lib.statistics.hooks import hooked
from prehab_lib.statistics.tokens import RealTokens

ALONE = 1.0  # a layer in no repeated block: as if the block had turned its input by a right angle


class BlockInfluence:
    """mean over tokens of 1 − cos(h, block(h)) for every block that holds one of the layers.

    A block is the innermost numbered module around a layer ("blocks.3" of "blocks.3.attn.qkv").
    Padding is left out.  hooks: to be entered for the forward passes.  Source: ShortGPT's block
    influence, as Swift-SVD (arXiv 2604.01609) uses it for its ranks.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], real: RealTokens):
        self.real = real
        self.block_of = {name: block_of(name) for name in layers}
        names = sorted({block for block in self.block_of.values() if block is not None})
        blocks = {name: model.get_submodule(name) for name in names}
        self.hooks = hooked(blocks, self._before, self._after)
        self.total, self.tokens = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
        self.entered: dict[str, Tensor | None] = {}

    def _before(self, block: str, x: Tensor | None) -> None:
        # A copy: a block may add to its input in place.
        self.entered[block] = None if x is None else self.real.rows(x).clone()

    def _after(self, block: str, x: Tensor | None, out) -> None:
        before, after = self.entered.pop(block), out[0] if isinstance(out, tuple | list) else out
        if before is None or not isinstance(after, Tensor) or after.shape[-1] != before.shape[-1]:
            return
        after = self.real.rows(after)
        if after.shape == before.shape:
            cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            self.total[block] += float((1 - cosine).double().sum())
            self.tokens[block] += len(cosine)

    def result(self) -> dict[str, float]:
        """layer -> influence of its block; `ALONE` where no block is, or one changes the width."""
        means = {block: self.total[block] / count for block, count in self.tokens.items() if count}
        return {name: means.get(block, ALONE) for name, block in self.block_of.items()}


def block_of(layer: str) -> str | None:
    """ "blocks.3.attn.qkv" -> "blocks.3"; None for a layer in no numbered module."""
    inside = re.match(r"(.*(?:^|\.)\d+)\.", layer)
    return inside.group(1) if inside else None
