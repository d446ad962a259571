import pytest
import timm
import torch
import transformers
from torch import nn

from prehab_lib.layers import default_layers, linear_layers, replace_module
from tests.helpers import Toy

TINY = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)


def test_vit_layers_are_the_papers():
    model = timm.models.VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5)
    names = default_layers(model)
    assert len(names) == 2 * 4 + 1 and names[-1] == "head" and "patch_embed.proj" not in names


def test_bert_layers_are_72_for_12_blocks():
    config = transformers.BertConfig(vocab_size=20, **(TINY | {"num_hidden_layers": 12}))
    names = default_layers(transformers.BertForSequenceClassification(config))
    assert len(names) == 72 and not any("pooler" in name or "classifier" in name for name in names)


def test_llama_layers_leave_the_language_model_head():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **TINY))
    assert len(default_layers(model)) == 2 * 7


def test_another_model_gives_all_its_linears():
    assert default_layers(Toy()) == ["query", "key", "out"]


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
