"""Models whose layers were rewritten, written to disk and read again."""

import copy
import json

import pytest
import torch

from prehab_lib.layers import default_layers
from prehab_lib.save import storage
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress, load, save
from tests.families import gpt2, logits, vit


def vit_split():
    model = vit(num_classes=1000, qkv_bias=False)
    split_qkv(model)
    return model, ["split_qkv"], "blocks.{}.attn.qkv"


def gpt2_as_it_comes():
    return gpt2(), [], ""


def gpt2_converted():
    model = gpt2()
    to_linear(model)
    return model, ["to_linear"], ""


def gpt2_split_alone():
    model = gpt2()
    split_qkv(model)
    return model, ["split_qkv"], "transformer.h.{}.attn.c_attn"


def gpt2_converted_and_split():
    model = gpt2()
    split_qkv(model)
    to_linear(model)
    return model, ["to_linear", "split_qkv"], "transformer.h.{}.attn.c_attn"


REWRITTEN = [vit_split, gpt2_as_it_comes, gpt2_converted, gpt2_split_alone, gpt2_converted_and_split]


@pytest.mark.parametrize("make", REWRITTEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low_rank", [False, True])
def test_rewritten_models_come_back_to_the_last_bit(make, dtype, low_rank, tmp_path):
    model, rewrites, fused = make()
    model = model.to(dtype)
    if low_rank and fused:  # of six parts q and v of one block, k of the other; the rest stays dense
        names = [f"{fused.format(0)}.q", f"{fused.format(0)}.v", f"{fused.format(1)}.k"]
        compress(model, "svd", 0.4, layers=names)
    elif low_rank and "to_linear" in rewrites:
        compress(model, "svd", 0.4, layers=default_layers(model)[1::3])
    folder = save(model, tmp_path / "model")
    again = load(folder)
    assert torch.equal(logits(again), logits(model))
    assert str(again) == str(model)
    assert json.loads((folder / storage.DESCRIPTION).read_text())["rewrites"] == rewrites
    twice = load(save(again, tmp_path / "twice"))
    assert torch.equal(logits(twice), logits(model))


def test_a_loaded_split_model_can_be_compressed_further(tmp_path):
    model, *_ = gpt2_converted_and_split()
    again = load(save(model, tmp_path / "model"))
    assert default_layers(again) == default_layers(model)
    assert compress(again, "svd", 0.4).achieved >= 0.4
    assert again.lm_head.weight is again.transformer.wte.weight


def test_a_rewrite_left_out_of_the_description_is_noticed(tmp_path):
    for make in (vit_split, gpt2_converted):
        model, *_ = make()
        folder = save(model, tmp_path / make.__name__)
        path = folder / storage.DESCRIPTION
        description = json.loads(path.read_text())
        assert description["rewrites"]
        description["rewrites"] = []
        path.write_text(json.dumps(description))
        with pytest.raises(ValueError, match="lacks|has shape"):
            load(folder)


def test_a_model_rewritten_in_part_is_refused(tmp_path):
    model = gpt2()
    converted = copy.deepcopy(model)
    to_linear(converted)
    for block, other in zip(model.transformer.h, converted.transformer.h, strict=True):
        block.mlp.c_fc = other.mlp.c_fc
    with pytest.raises(ValueError, match=r"it has '\(c_fc\): Linear.* where the recipe gives .\(c_fc\): Conv1D"):
        save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
