import re

import pytest
import timm
import torch
import transformers
from torch import nn

from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.layers import default_layers, is_linear, linear_layers, replace_module
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.families import CLASSIFIER, FAMILIES, NARROW, SIZES, distance, gpt2, headed, llama, logits, tiny, vit
from tests.helpers import Toy
from tests.stack import refuses

every_family = pytest.mark.parametrize("family", FAMILIES)


def test_the_heads_of_other_encoders_and_of_classifiers_stay():
    for kind in ("Roberta", "Electra", "DistilBert"):
        sizes = SIZES if kind != "DistilBert" else dict(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
        names = default_layers(headed(kind, CLASSIFIER, **sizes))
        assert len(names) == 2 * 6 and all("layer." in name for name in names), kind
    for kind in ("Llama", "OPT", "GPT2"):
        model = headed(kind, CLASSIFIER, pad_token_id=0, num_labels=3, **NARROW)
        to_linear(model)
        assert is_linear(model.score) and "score" not in default_layers(model), kind


@every_family
def test_every_family_lists_the_matrices_of_its_blocks_and_nothing_else(family):
    _, a_block, beside = FAMILIES[family]
    model = tiny(family)
    to_linear(model)
    names = default_layers(model)
    assert len(names) == len(set(names)) == 2 * a_block + beside
    assert all(re.search(r"\.[01]\.", name) or name == "head" for name in names)
    left = {name for name, module in model.named_modules() if is_linear(module)} - set(names)
    projections = {"model.decoder.project_in", "model.decoder.project_out"}
    assert left <= {"lm_head", "classifier", "bert.pooler.dense"} | projections
    if family != "vit":  # the bare backbone has them too
        assert [f"{model.base_model_prefix}.{name}" for name in default_layers(model.base_model)] == names


@every_family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_full_rank_leaves_the_logits_of_every_family(family, dtype, tolerance):
    model = tiny(family, dtype)
    before = logits(model)
    to_linear(model)
    for name, found in decompose_all(model, None, "identity").items():
        factors = found.truncate(len(found.sigma)).balanced()
        factors = Factors(factors.U.to(dtype), factors.V.to(dtype))
        replace_module(model, name, LowRankLinear.from_factors(factors, model.get_submodule(name).bias))
    dense = tiny(family, dtype)
    to_linear(dense)
    assert not any(type(model.get_submodule(name)) is nn.Linear for name in default_layers(dense))
    assert distance(logits(model), before) < tolerance
    compress(dense, "svd", 0.6)
    assert distance(logits(dense), before) > 0.1  # and the measure would have seen a wrong layer


def test_a_gated_vit_gives_all_three_matrices_of_its_mlp_and_another_model_all_its_linears():
    model = vit(mlp_layer=timm.layers.SwiGLU)
    assert len(default_layers(model)) == 2 * 5 + 1 and "blocks.0.mlp.fc1_g" in default_layers(model)
    assert default_layers(Toy()) == ["query", "key", "out"]


def test_what_cannot_be_compressed_is_named_with_the_remedy():
    conv = nn.ModuleDict({"conv": transformers.pytorch_utils.Conv1D(6, 4), "linear": nn.Linear(4, 6)})
    bare, split = vit(depth=0, num_classes=0), vit()
    bare.extra = nn.Linear(2, 2)
    split_qkv(split)
    tied = llama(tie_word_embeddings=True)
    for model, layers, message in (
        (gpt2(), None, r"'transformer.h.0.attn.c_attn' is a Conv1D, .*rewrite.to_linear\(model\) first"),
        (conv, None, r"'conv' is a Conv1D.*to_linear"),
        (conv, ["linear", "conv"], r"'conv' is a Conv1D.*to_linear"),
        (bare, None, "none of its nn.Linear has a name known for this family"),
        (split, ["blocks.0.attn.qkv"], r"'blocks.0.attn.qkv' is a SplitQKV.*end in .q, .k and .v"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), None, "no linear layer to compress"),
        (Toy(), ["query", "nope"], "no module named 'nope'"),
        (Toy(), [""], "not a dense nn.Linear"),
        (Toy(), [], "layers is empty"),
        (tied, ["lm_head"], "'lm_head' shares its weight with 'model.embed_tokens.weight'"),
    ):
        refuses(linear_layers, ({"model": model, "layers": layers}, message))
    assert list(linear_layers(conv, ["linear"])) == ["linear"] and "lm_head" not in linear_layers(tied)
    assert "blocks.1.attn.qkv.k" in linear_layers(split)
