import re

import pytest
import timm
import torch
import transformers
from torch import nn

from prehab_lib.budget import rank_for
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.layers import default_layers, is_linear, linear_layers, replace_module
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.families import FAMILIES, distance, gpt2, logits, opt, qwen3, tiny, vit
from tests.helpers import Toy

every_family = pytest.mark.parametrize("family", FAMILIES)
TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


def test_vit_layers_are_the_papers():
    model = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    names = default_layers(model)
    assert len(names) == 2 * 4 + 1 and names[-1] == "head" and "patch_embed.proj" not in names


def test_bert_layers_are_72_for_12_blocks():
    config = transformers.BertConfig(vocab_size=20, **(TINY | {"num_hidden_layers": 12}))
    names = default_layers(transformers.BertForSequenceClassification(config))
    assert len(names) == 72 and not any("pooler" in name or "classifier" in name for name in names)


@pytest.mark.parametrize("name", ["Roberta", "Electra", "DistilBert"])
def test_the_heads_of_other_encoders_stay(name):
    sizes = TINY if name != "DistilBert" else dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    config = getattr(transformers, f"{name}Config")(vocab_size=20, **sizes)
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    names = default_layers(model)
    assert len(names) == 2 * 6 and all("layer." in name for name in names)


def test_llama_layers_leave_the_language_model_head():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **TINY))
    assert len(default_layers(model)) == 2 * 7


def test_another_model_gives_all_its_linears():
    assert default_layers(Toy()) == ["query", "key", "out"]


@every_family
def test_every_family_lists_the_matrices_of_its_blocks_and_nothing_else(family):
    _, a_block, beside = FAMILIES[family]
    model = tiny(family)
    to_linear(model)
    names = default_layers(model)
    assert len(names) == len(set(names)) == 2 * a_block + beside
    assert all(re.search(r"\.[01]\.", name) or name == "head" for name in names)
    left = {name for name, module in model.named_modules() if is_linear(module)} - set(names)
    assert left <= {
        "lm_head",
        "classifier",
        "bert.pooler.dense",
        "model.decoder.project_in",
        "model.decoder.project_out",
    }


@pytest.mark.parametrize("family", ["bert", "llama", "opt", "gpt2"])
def test_a_bare_backbone_has_the_same_layers_as_with_its_head(family):
    model = tiny(family)
    to_linear(model)
    assert [f"{model.base_model_prefix}.{name}" for name in default_layers(model.base_model)] == default_layers(model)


@pytest.mark.parametrize("kind", ["Llama", "OPT", "GPT2"])
def test_a_text_classifier_stays(kind):
    sizes = dict(
        vocab_size=20, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, pad_token_id=0, num_labels=3
    )
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    to_linear(model)
    assert is_linear(model.score) and "score" not in default_layers(model)


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
    assert not any(type(module) is nn.Linear for module in map(model.get_submodule, default_names(family)))
    assert distance(logits(model), before) < tolerance
    dense = tiny(family, dtype)
    to_linear(dense)
    compress(dense, "svd", 0.6)
    assert distance(logits(dense), before) > 0.1  # and the measure would have seen a wrong layer


def default_names(family):
    model = tiny(family)
    to_linear(model)
    return default_layers(model)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_grouped_queries_rank_each_matrix_by_its_own_shape(family):
    model = tiny(family)
    shapes = {name: tuple(module.weight.shape) for name, module in linear_layers(model).items()}
    q, k = shapes["model.layers.0.self_attn.q_proj"], shapes["model.layers.0.self_attn.k_proj"]
    assert q[0] == 2 * k[0] and k == shapes["model.layers.0.self_attn.v_proj"]
    report = compress(model, "svd", 0.4)
    assert report.ranks == {name: rank_for(shape, 0.4) for name, shape in shapes.items()}
    assert report.ranks["model.layers.0.self_attn.k_proj"] < report.ranks["model.layers.0.self_attn.q_proj"]


def test_heads_wider_than_the_model_are_sized_as_they_are():
    shapes = {name.rsplit(".", 1)[1]: tuple(m.weight.shape) for name, m in linear_layers(qwen3()).items()}
    assert [shapes[name] for name in ("q_proj", "k_proj", "v_proj", "o_proj")] == [
        (64, 32),
        (32, 32),
        (32, 32),
        (32, 64),
    ]


def test_opt_keeps_the_projections_of_its_embeddings():
    names = default_layers(opt())
    assert len(names) == 12 and not any("project" in name for name in names)


def test_a_gated_vit_gives_all_three_matrices_of_its_mlp():
    model = vit(mlp_layer=timm.layers.SwiGLU)
    assert len(default_layers(model)) == 2 * 5 + 1 and "blocks.0.mlp.fc1_g" in default_layers(model)


@pytest.mark.parametrize("ask", [default_layers, linear_layers])
def test_an_unconverted_gpt2_is_refused_with_the_remedy(ask):
    with pytest.raises(
        ValueError, match=r"'transformer.h.0.attn.c_attn' is a Conv1D, .*rewrite.to_linear\(model\) first"
    ):
        ask(gpt2())


def test_one_conv1d_named_is_refused_and_its_linear_neighbours_are_not():
    model = nn.ModuleDict({"conv": transformers.pytorch_utils.Conv1D(6, 4), "linear": nn.Linear(4, 6)})
    assert list(linear_layers(model, ["linear"])) == ["linear"]
    with pytest.raises(ValueError, match=r"'conv' is a Conv1D.*to_linear"):
        linear_layers(model, ["linear", "conv"])
    with pytest.raises(ValueError, match=r"'conv' is a Conv1D.*to_linear"):
        default_layers(model)


def test_a_known_family_with_other_names_says_so():
    model = vit(depth=0, num_classes=0)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="none of its nn.Linear has a name known for this family"):
        default_layers(model)


def test_a_split_layer_is_named_by_its_parts():
    model = vit()
    split_qkv(model)
    assert "blocks.1.attn.qkv.k" in linear_layers(model)
    with pytest.raises(ValueError, match=r"'blocks.0.attn.qkv' is a SplitQKV.*end in .q, .k and .v"):
        linear_layers(model, ["blocks.0.attn.qkv"])


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layer to compress"):
        default_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))


@pytest.mark.parametrize(
    ("layers", "message"),
    [(["query", "nope"], "no module named 'nope'"), ([""], "not a dense nn.Linear"), ([], "layers is empty")],
)
def test_bad_names_are_named(layers, message):
    with pytest.raises(ValueError, match=message):
        linear_layers(Toy(), layers)


def test_tied_weights_are_refused():
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, tie_word_embeddings=True, **TINY)
    )
    with pytest.raises(ValueError, match="'lm_head' shares its weight with 'model.embed_tokens.weight'"):
        linear_layers(model, ["lm_head"])


def test_replace_module_reaches_into_the_tree():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    new = nn.Linear(2, 2)
    replace_module(model, "0.0", new)
    assert model[0][0] is new
    torch.testing.assert_close(model(torch.ones(1, 2)), model[1](new(torch.ones(1, 2))))


def test_a_tied_head_of_an_unlisted_family_is_left_out():
    config = transformers.Qwen2Config(vocab_size=20, num_key_value_heads=1, tie_word_embeddings=True, **TINY)
    names = linear_layers(transformers.Qwen2ForCausalLM(config))
    assert len(names) == 2 * 7 and "lm_head" not in names
