"""What waits on the CPU while hidden states are carried from block to block."""

import pytest
import torch

from prehab_lib.scale.walk import Walk
from tests.families import llama
from tests.scale.test_stream import tokens


def storages(value, found):
    """Memory of the tensors in a nest: its address -> bytes."""
    if isinstance(value, torch.Tensor):
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ():
        storages(item, found)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_masks_and_tables_that_do_not_change_are_kept_once(attention):
    model = llama(attn_implementation=attention)
    kept = []
    for count in (1, 6):
        carried = Walk(model, None)
        carried.enter(tokens(count))
        kept.append(sum(storages(carried.calls, {}).values()))
    assert kept[0] == kept[1] > 0
    changing = Walk(model, None)
    padded = [*tokens(1), *tokens(1, padded=True), *tokens(1)]
    changing.enter(padded)
    masks = [calls["model.layers.0"][1]["attention_mask"] for calls in changing.calls]
    assert masks[1] is not None and (masks[0] is None or not torch.equal(masks[0], masks[1]))
