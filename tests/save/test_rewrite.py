"""Rewriting changes the modules and leaves the function."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from prehab_lib.budget import rank_for
from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import default_layers, linear_layers
from prehab_lib.save.rewrite import SplitQKV, rewrites_between, split_qkv, to_linear
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from tests.families import distance, gpt2, inputs_of, logits, tiny, vit
from tests.helpers import Toy

CLOSE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.02}
every_dtype = pytest.mark.parametrize("dtype", CLOSE)


def stirred(model, seed=1):
    """The model with biases that are not zero, so that a lost or shuffled one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def state_of_random():
    return torch.get_rng_state().tolist()


@every_dtype
@pytest.mark.parametrize("order", [(to_linear,), (split_qkv,), (to_linear, split_qkv), (split_qkv, to_linear)])
def test_gpt2_says_the_same_in_every_form(order, dtype):
    model = stirred(tiny("gpt2", dtype))
    before = logits(model)
    for rewrite in order:
        rewrite(model)
    assert distance(logits(model), before) < CLOSE[dtype]
    assert {p.dtype for p in model.parameters()} == {dtype}


@every_dtype
@pytest.mark.parametrize("kwargs", [{}, {"qkv_bias": False}, {"qk_norm": True}])
def test_a_split_vit_says_the_same(kwargs, dtype):
    model = stirred(vit(**kwargs)).to(dtype)
    before = logits(model)
    split_qkv(model)
    assert distance(logits(model), before) < CLOSE[dtype]
    model.blocks[1].attn.qkv.v.weight.detach().zero_()
    assert distance(logits(model), before) > 2 * CLOSE[dtype]  # the part is in use


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
    fused, model = stirred(vit()), stirred(vit())
    model.load_state_dict(fused.state_dict())
    assert split_qkv(model) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    split, whole = model.blocks[0].attn.qkv, fused.blocks[0].attn.qkv
    assert torch.equal(split.q.weight, whole.weight[:32]) and torch.equal(split.q.bias, whole.bias[:32])
    assert torch.equal(split.k.weight, whole.weight[32:64]) and torch.equal(split.k.bias, whole.bias[32:64])
    assert torch.equal(split.v.weight, whole.weight[64:]) and torch.equal(split.v.bias, whole.bias[64:])
    assert torch.equal(split.weight, whole.weight) and torch.equal(split.bias, whole.bias)
    assert (split.in_features, split.out_features) == (32, 96)
    assert all(type(part) is nn.Linear for part in split.children())


def test_every_part_owns_its_memory():
    model = vit()
    split_qkv(model)
    parts = [part.weight for part in model.blocks[0].attn.qkv.children()]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 3
    assert all(part.untyped_storage().nbytes() == part.numel() * part.element_size() for part in parts)


def test_a_vit_of_12_blocks_has_49_matrices_fused_and_73_split():
    model = vit(depth=12)
    assert len(default_layers(model)) == 49
    split_qkv(model)
    names = default_layers(model)
    assert len(names) == 73 and [n for n in names if n.startswith("blocks.3.attn")] == [
        "blocks.3.attn.qkv.q",
        "blocks.3.attn.qkv.k",
        "blocks.3.attn.qkv.v",
        "blocks.3.attn.proj",
    ]


def test_gradients_are_the_rows_of_the_fused_gradient():
    fused = vit().double()
    split = copy.deepcopy(fused)
    split_qkv(split)
    for model in (fused, split):
        model(inputs_of(model)).square().sum().backward()
    grads = torch.cat([part.weight.grad for part in split.blocks[0].attn.qkv.children()])
    torch.testing.assert_close(grads, fused.blocks[0].attn.qkv.weight.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "rewrite", "name"),
    [
        (vit, split_qkv, "blocks.0.attn.qkv"),
        (gpt2, to_linear, "transformer.h.0.attn.c_attn"),
        (gpt2, split_qkv, "transformer.h.0.attn.c_attn"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_flags_modes_and_the_random_state_stay(make, rewrite, name, training):
    model = make().train(training)
    model.get_submodule(name).weight.requires_grad_(False)
    before = state_of_random()
    rewrite(model)
    assert state_of_random() == before
    linears = [module for module in model.get_submodule(name).modules() if isinstance(module, nn.Linear)]
    assert len(linears) == (1 if rewrite is to_linear else 3)
    assert not any(linear.weight.requires_grad for linear in linears) and all(l.bias.requires_grad for l in linears)
    assert all(module.training is training for module in model.get_submodule(name).modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [vit, gpt2])
def test_a_split_layer_is_compressed_part_by_part(make, dtype):
    model = make().to(dtype)
    to_linear(model)
    split_qkv(model)
    parts = [name for name in default_layers(model) if name.endswith((".q", ".k", ".v"))]
    assert len(parts) == 2 * 3
    report = compress(model, "svd", 0.4, layers=parts)
    assert set(report.ranks.values()) == {rank_for((32, 32), 0.4)} and report.achieved >= 0.4
    assert logits(model).isfinite().all()


def test_the_parts_read_one_input_and_so_have_one_gram():
    model = vit()
    split_qkv(model)
    batches = [(torch.rand(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)) for _ in range(20)]
    names = [f"blocks.0.attn.qkv.{part}" for part in "qkv"]
    stats = collect(model, batches, names)
    assert stats[names[0]].gram.shape == (32, 32)
    assert all(torch.equal(stats[name].gram, stats[names[0]].gram) for name in names)


def bert():
    return tiny("bert")


def llama():
    return tiny("llama")


def no_blocks():
    return vit(depth=0)


@pytest.mark.parametrize("make", [Toy, bert, llama, no_blocks])
def test_nothing_to_split_is_one_sentence(make):
    with pytest.raises(
        ValueError, match="has no fused query-key-value layer to split: known are .*VisionTransformer, GPT2"
    ):
        split_qkv(make())


def test_a_second_split_says_that_the_first_was_done():
    model = vit()
    split_qkv(model)
    with pytest.raises(ValueError, match="to split: it is split already"):
        split_qkv(model)


def test_a_compressed_layer_is_not_split_and_nothing_changes():
    model = vit()
    compress(model, "svd", 0.4, layers=["blocks.1.attn.qkv"])
    with pytest.raises(ValueError, match=r"'blocks.1.attn.qkv' is a LowRankLinear.*split before anything else"):
        split_qkv(model)
    assert not any(isinstance(module, SplitQKV) for module in model.modules())


def test_a_parametrised_layer_is_not_split():
    model = vit()
    nn.utils.parametrizations.orthogonal(model.blocks[0].attn.qkv)
    with pytest.raises(ValueError, match="is a ParametrizedLinear, not a plain nn.Linear"):
        split_qkv(model)


@pytest.mark.parametrize("rewrite", [to_linear, split_qkv])
def test_tied_matrices_are_refused_and_nothing_changes(rewrite):
    model = gpt2()
    model.transformer.h[1].attn.c_attn.weight = model.transformer.h[0].attn.c_attn.weight
    with pytest.raises(
        ValueError, match=r"h.0.attn.c_attn' shares its weight with 'transformer.h.1.attn.c_attn.weight'"
    ):
        rewrite(model)
    assert sum(isinstance(module, Conv1D) for module in model.modules()) == 2 * 4


def test_cross_attention_is_converted_and_not_split():
    model = gpt2(add_cross_attention=True, is_encoder_decoder=False)
    assert "transformer.h.0.crossattention.c_attn" in to_linear(model)
    assert split_qkv(model) == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]


def test_a_rewritten_gpt2_generates_what_it_did():
    model = tiny("gpt2", torch.float64)
    ids, more = inputs_of(model)[:, :4], dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    before = model.generate(ids, **more)
    to_linear(model)
    split_qkv(model)
    assert torch.equal(model.generate(ids, **more), before)


def test_what_was_rewritten_is_read_off_the_modules():
    skeleton, model = gpt2(), gpt2()
    assert rewrites_between(skeleton, model) == []
    split_qkv(model)
    assert rewrites_between(skeleton, model) == ["split_qkv"]
    to_linear(model)
    assert rewrites_between(skeleton, model) == ["to_linear", "split_qkv"]
    compress(model, "svd", 0.4)
    assert rewrites_between(skeleton, model) == ["to_linear", "split_qkv"]
    assert rewrites_between(vit(), vit()) == []


def test_a_conv1d_without_a_family_is_converted_too():
    model = nn.Sequential(Conv1D(6, 4), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    before = model(x)
    assert to_linear(model) == ["0"] and list(linear_layers(model)) == ["0", "2"]
    torch.testing.assert_close(model(x), before)


def test_weights_without_memory_are_rewritten_too():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(gpt2().config)
    to_linear(model)
    assert model.transformer.h[0].mlp.c_fc.weight.is_meta and model.transformer.h[0].mlp.c_fc.weight.shape == (128, 32)


def test_the_fused_weight_and_bias_are_there_with_a_low_rank_part_too():
    model = stirred(vit())
    bias = model.blocks[0].attn.qkv.bias.clone()
    split_qkv(model)
    compress(model, "svd", 0.4, layers=["blocks.0.attn.qkv.k"])
    split = model.blocks[0].attn.qkv
    assert isinstance(split.k, LowRankLinear) and torch.equal(split.bias, bias)
    assert (split.in_features, split.out_features) == tuple(split.weight.shape)[::-1] == (32, 96)
    x = inputs_of(model).flatten()[:64].view(2, 32)
    torch.testing.assert_close(split(x), nn.functional.linear(x, split.weight, split.bias))
