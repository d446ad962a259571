"""Rewriting changes the modules and leaves the function."""

import copy
import re

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import default_layers, linear_layers
from prehab_lib.save.rewrite import SplitQKV, split_qkv, to_linear
from prehab_lib.surgery import compress
from tests.families import distance, gpt2, inputs_of, logits, tiny, vit
from tests.helpers import Toy
from tests.save.test_storage import refused

CLOSE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.02}
QKV, C_ATTN = "blocks.0.attn.qkv", "transformer.h.0.attn.c_attn"


def stirred(model, seed=1):
    """The model with biases that are not zero, so that a lost or shuffled one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def split_vit(**kwargs):
    model = stirred(vit(**kwargs))
    split_qkv(model)
    return model, model.blocks[0].attn.qkv


@pytest.mark.parametrize("dtype", CLOSE)
def test_a_rewritten_model_says_the_same(dtype):
    for order in ((to_linear,), (split_qkv,), (to_linear, split_qkv), (split_qkv, to_linear)):
        model = stirred(tiny("gpt2", dtype))
        before = logits(model)
        for rewrite in order:
            rewrite(model)
        assert distance(logits(model), before) < CLOSE[dtype], order
        assert {p.dtype for p in model.parameters()} == {dtype}, order
    for kwargs in ({}, {"qkv_bias": False}, {"qk_norm": True}):
        model = stirred(vit(**kwargs)).to(dtype)
        before = logits(model)
        split_qkv(model)
        assert distance(logits(model), before) < CLOSE[dtype], kwargs
        model.blocks[1].attn.qkv.v.weight.detach().zero_()
        assert distance(logits(model), before) > 2 * CLOSE[dtype], f"{kwargs}: the part is not in use"


def test_the_weights_of_gpt2_are_transposed_and_named():
    model = stirred(tiny("gpt2"))
    fc, out = copy.deepcopy(model.transformer.h[0].mlp.c_fc), model.lm_head.weight
    names = to_linear(model)
    assert len(names) == 2 * 4 and names == default_layers(model)
    new = model.transformer.h[0].mlp.c_fc
    assert type(new) is nn.Linear and (new.in_features, new.out_features) == (32, 128)
    assert torch.equal(new.weight, fc.weight.T) and new.weight.is_contiguous() and torch.equal(new.bias, fc.bias)
    assert model.lm_head.weight is out is model.transformer.wte.weight
    assert to_linear(model) == [] and to_linear(Toy()) == []


def test_the_parts_are_the_rows_in_the_order_query_key_value():
    whole = stirred(vit()).blocks[0].attn.qkv
    model = stirred(vit())
    assert split_qkv(model) == [QKV, "blocks.1.attn.qkv"]
    split = model.blocks[0].attn.qkv
    for start, part in ((0, split.q), (32, split.k), (64, split.v)):
        rows = slice(start, start + 32)
        assert type(part) is nn.Linear and torch.equal(part.weight, whole.weight[rows]), start
        assert torch.equal(part.bias, whole.bias[rows]), start
        own = part.weight.untyped_storage()
        assert own.nbytes() == part.weight.numel() * 4 and own.data_ptr() != whole.weight.data_ptr(), start
    assert torch.equal(split.weight, whole.weight) and torch.equal(split.bias, whole.bias)


def test_the_fused_weight_and_bias_are_there_with_a_low_rank_part_too():
    model, split = split_vit()
    bias = split.bias.clone()
    compress(model, "svd", 0.4, layers=[f"{QKV}.k"])
    assert isinstance(split.k, LowRankLinear) and torch.equal(split.bias, bias)
    x = inputs_of(model).flatten()[:64].view(2, 32)
    torch.testing.assert_close(split(x), nn.functional.linear(x, split.weight, split.bias))


def test_a_vit_of_12_blocks_has_49_matrices_fused_and_73_split():
    assert len(default_layers(vit(depth=12))) == 49
    names = default_layers(split_vit(depth=12)[0])
    block = "blocks.3.attn"
    assert [n for n in names if n.startswith(block)] == [f"{block}.qkv.{p}" for p in "qkv"] + [f"{block}.proj"]
    assert len(names) == 73


def test_flags_modes_and_the_random_state_stay():
    cases = (vit, split_qkv, QKV, 3), (gpt2, to_linear, C_ATTN, 1), (gpt2, split_qkv, C_ATTN, 3)
    for make, rewrite, name, count in cases:
        for training in (True, False):
            where = f"{name}, {rewrite.__name__}, training={training}"
            model = make().train(training)
            model.get_submodule(name).weight.requires_grad_(False)
            before = torch.get_rng_state()
            rewrite(model)
            assert torch.equal(torch.get_rng_state(), before), where
            modules = list(model.get_submodule(name).modules())
            linears = [module for module in modules if isinstance(module, nn.Linear)]
            assert len(linears) == count and all(module.training is training for module in modules), where
            assert not any(linear.weight.requires_grad for linear in linears), where
            assert all(linear.bias.requires_grad for linear in linears), where


def test_what_cannot_be_split_is_one_sentence_and_nothing_changes():
    compressed, parametrised = vit(), vit()
    compress(compressed, "svd", 0.4, layers=["blocks.1.attn.qkv"])
    nn.utils.parametrizations.orthogonal(parametrised.blocks[0].attn.qkv)
    nothing = "has no fused query-key-value layer to split: known are .*VisionTransformer, GPT2"
    for model, says in (
        *((model, nothing) for model in (Toy(), tiny("bert"), tiny("llama"), vit(depth=0))),
        (split_vit()[0], "to split: it is split already"),
        (compressed, r"'blocks.1.attn.qkv' is a LowRankLinear.*split before anything else"),
        (parametrised, "is a ParametrizedLinear, not a plain nn.Linear"),
    ):
        before = str(model)
        assert re.search(says, refused(ValueError, split_qkv, model)), says
        assert str(model) == before, says


def test_tied_matrices_are_refused_and_nothing_changes():
    model = gpt2()
    model.transformer.h[1].attn.c_attn.weight = model.transformer.h[0].attn.c_attn.weight
    for rewrite in (to_linear, split_qkv):
        said = f"{C_ATTN}' shares its weight with 'transformer.h.1.attn.c_attn.weight'"
        assert said in refused(ValueError, rewrite, model), rewrite
        assert not any(isinstance(module, SplitQKV) for module in model.modules()), rewrite
        assert sum(isinstance(module, Conv1D) for module in model.modules()) == 2 * 4, rewrite


def test_cross_attention_is_not_split():
    model = gpt2(add_cross_attention=True, is_encoder_decoder=False)
    assert "transformer.h.0.crossattention.c_attn" in to_linear(model)
    assert split_qkv(model) == [C_ATTN, "transformer.h.1.attn.c_attn"]


def test_a_conv1d_without_a_family_or_without_memory_is_converted_too():
    model, x = nn.Sequential(Conv1D(6, 4), nn.ReLU(), nn.Linear(6, 2)), torch.randn(5, 4)
    before = model(x)
    assert to_linear(model) == ["0"] and list(linear_layers(model)) == ["0", "2"]
    torch.testing.assert_close(model(x), before)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(gpt2().config)
    to_linear(model)
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert weight.is_meta and weight.shape == (128, 32)
