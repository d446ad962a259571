"""Contract of every method: whoever adds one to `METHODS` inherits these tests."""

from dataclasses import replace
from functools import partial

import pytest
import timm
import torch
import transformers
from torch import nn

from prehab_lib.budget import check_removed
from prehab_lib.evaluate import classification_loss
from prehab_lib.layers import linear_layers
from prehab_lib.methods import METHODS, Method
from prehab_lib.stats import KNOWN, LayerStats, collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import Toy, toy_batches
from tests.stack import refuses

LAYERS = ("query", "key", "out")


@pytest.fixture
def toy():
    model, batches = Toy(n=24, m=32, classes=20), toy_batches(n=24, classes=20, count=12)
    return model, batches, collect(model, batches, needs=KNOWN, task_loss=classification_loss, iterations=2)


@pytest.mark.parametrize("method", METHODS)
def test_biases_modes_and_flags_are_untouched(method, toy):
    model = toy[0].train()
    model.key.weight.requires_grad_(False)
    biases = {name: model.get_submodule(name).bias.clone() for name in LAYERS}
    compress(model, method, 0.4, toy[2], task_loss=classification_loss, batches=toy[1])
    assert all(torch.equal(model.get_submodule(name).bias, biases[name]) for name in LAYERS)
    assert model.query.training
    for name in LAYERS:  # asvd may leave one dense
        weights = [p for part, p in model.get_submodule(name).named_parameters() if part.endswith("weight")]
        assert weights and all(p.requires_grad == (name != "key") for p in weights)


def test_a_recovery_that_fails_leaves_the_model_as_it_was(toy):
    model, before = toy[0], dict(toy[0].named_modules())
    breaks = [*toy[1][:2], (torch.full((4, 24), float("nan")), torch.zeros(4))]
    cases = ({"batches": None}, "needs batches"), ({"batches": breaks}, "NaN")
    call = partial(compress, model, "svd_llm_update", 0.4, toy[2])
    refuses(call, *cases, also=lambda: dict(model.named_modules()) == before)


def test_half_precision_keeps_its_dtype_and_refuses_overflow(toy):
    model = toy[0].to(torch.bfloat16)
    compress(model, "svd", 0.4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    huge = nn.Sequential(nn.Linear(8, 8)).half()
    with torch.no_grad():
        huge[0].weight.fill_(60000)
    report = compress(huge, "svd", 0.4)
    assert torch.isfinite(huge[0].U.weight).all() and report.achieved >= 0.4


def test_a_frozen_bias_stays_frozen_and_a_recovery_must_be_known(toy):
    toy[0].key.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="recovery = 'nope' is not known"):
        compress(toy[0], Method("identity", recovery="nope"), 0.4)
    compress(toy[0], "svd", 0.4)
    assert not toy[0].key.bias.requires_grad and toy[0].key.U.weight.requires_grad
    with pytest.raises(ValueError, match="compressed already"):
        compress(toy[0], "svd", 0.4, layers=["query"])


def test_a_recovery_touches_the_layers_of_its_own_call_alone(toy):
    model, batches = toy[0], toy[1]
    cuts = decompose_all(model, toy[2])
    compress(model, "svd_llm", 0.4, toy[2], layers=["query", "key"], decompositions=cuts)
    before = model.query.U.weight.clone()
    compress(model, "svd_llm_update", 0.4, toy[2], layers=["out"], decompositions=cuts, batches=batches)
    assert torch.equal(model.query.U.weight, before)


def test_weights_that_moved_a_little_are_other_weights(toy):
    cuts = decompose_all(toy[0], toy[2])
    with torch.no_grad():
        toy[0].key.weight.mul_(1 + 1e-4)
    with pytest.raises(ValueError, match="decomposition of layer 'key' is of other weights"):
        compress(toy[0], "svd_llm", 0.4, toy[2], decompositions=cuts)


def test_thin_layers_stay_dense_and_the_rank_one_floor_is_reported():
    model = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 6), nn.Linear(6, 6))
    report = compress(model, "svd", 0.9)
    assert report.kept_dense == ["0", "1"] and type(model[0]) is nn.Linear
    assert report.at_floor == ["2"] and report.achieved < check_removed(0.9)
    assert "dense: 0, 1; rank 1 exceeds the budget of: 2" in str(report)
    assert "dense: a, b, c, d, e and 2 more;" in str(replace(report, kept_dense=[*"abcdefg"]))


SIZE = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
EXPERTS = {"Mixtral": dict(num_local_experts=4), "GptOss": dict(num_local_experts=4)}
EXPERTS["Qwen2Moe"] = dict(num_experts=4, moe_intermediate_size=16, shared_expert_intermediate_size=24)


@pytest.mark.parametrize("family", EXPERTS)
def test_what_was_not_compressed_is_said(family):
    """Experts in tensors of three dimensions, embeddings, head: named, with the share of the model that they hold."""
    config = getattr(transformers, f"{family}Config")(**SIZE, num_key_value_heads=2, **EXPERTS[family])
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    whole = sum(p.numel() for p in model.parameters())
    weights = {name: module.weight.numel() for name, module in linear_layers(model).items()}
    report = compress(model, "svd", 0.4)
    now = sum(p.numel() for p in model.parameters())
    assert report.held == pytest.approx(sum(weights.values()) / whole)
    assert report.achieved_of_model == pytest.approx(1 - now / whole)
    assert report.achieved_of_model < 0.6 * report.achieved
    assert sum(report.left_out.values()) + sum(weights.values()) == whole
    experts = f"model.layers.*.mlp.experts.gate_up_proj (2 3-D weights of {family}Experts)"
    assert next(iter(report.left_out)) == experts and "model.embed_tokens (1 Embedding)" in report.left_out
    assert "lm_head (1 Linear)" in report.left_out
    said = str(report)
    assert f"{report.achieved_of_model:.1%} of the model: the layers held {report.held:.1%}" in said
    assert f"left out: {experts} {report.left_out[experts] / whole:.1%}" in said and said.isascii()


def test_layers_left_out_by_name_kind_or_number_are_said():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), *(nn.Linear(12, 12) for _ in range(3)), nn.Embedding(9, 12))
    report = compress(model, "svd", 0.4, layers=["1"])
    left = {"* (2 Linear)": 288, "* (1 Embedding)": 108}
    assert report.left_out == left | {"vectors such as norms and biases": 40, "* (1 Conv2d)": 36}
    parts = nn.ModuleDict({f"part_{letter}": nn.Linear(3, 3 + number) for number, letter in enumerate("abcdefgh")})
    said = str(compress(parts, "svd", 0.4, layers=["part_h"]))
    assert "; part_d (1 Linear) 8." in said and "part_c (" not in said and said.endswith("; 3 more 17.3%")


def test_a_class_with_a_forward_of_its_own_is_named():
    falcon = transformers.FalconConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    beit = timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=4, num_classes=5)
    given = {"model": transformers.FalconForCausalLM(falcon), "method": "svd", "removed": 0.4}
    said = "is a FalconLinear, not a dense nn.Linear: call prehab_lib.save.rewrite.to_linear"
    refuses(compress, (given, said))
    said = r"reached layer 'blocks.0.attn.qkv' .*reads the weight alone \(F.linear\) leave it out"
    refuses(collect, ({"model": beit, "batches": [(torch.randn(4, 3, 32, 32), torch.zeros(4))]}, said))


def test_bad_input_is_named_before_any_work_and_changes_nothing(toy, monkeypatch):
    monkeypatch.setattr("prehab_lib.weightings.decompose", lambda *_, **__: pytest.fail("work was done"))
    call = partial(compress, toy[0])
    usual = {"method": "svd_llm", "removed": 0.4, "stats": toy[2]}
    for change, message in (
        ({"method": "svdllm"}, "method = 'svdllm' is not known"),
        *(({"removed": removed}, f"removed = {removed!r}:") for removed in (0, 1, -0.1, "40")),
        ({"stats": None}, "method 'svd_llm' for layer 'query' needs the statistic 'gram'"),
        ({"stats": {"query": LayerStats()}}, "needs the statistic 'gram'"),
        ({"method": Method("identity", "evenly")}, "allocation = 'evenly' is not known"),
        ({"method": "asvd"}, "task_loss"),
        ({"method": "swift_svd"}, "task_loss"),
        ({"method": "svd_llm_update"}, "batches"),
    ):
        refuses(call, (usual | change, message))
    monkeypatch.undo()
    refuses(call, (usual | {"method": Method("gramm")}, "weighting = 'gramm' is not known"))
    assert all(type(toy[0].get_submodule(name)) is nn.Linear for name in LAYERS)
