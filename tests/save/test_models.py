import pytest
import timm
import torch
import transformers

from prehab_lib.layers import default_layers
from prehab_lib.save.models import build, image_model, recipe_of, small_vit, text_model
from tests.families import distance, logits, tiny

TINY = dict(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)


def test_a_seed_makes_the_weights_and_leaves_the_callers_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other, third = small_vit(1, 16, 2, seed=1), small_vit(1, 16, 2, seed=1), small_vit(1, 16, 2, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.head.weight, other.head.weight) and not torch.equal(one.head.weight, third.head.weight)
    assert one(torch.zeros(2, 1, 8, 16)).shape == (2, 100)


def test_a_timm_model_by_name_with_random_weights():
    model = image_model("vit_tiny_patch16_224", pretrained=False, num_classes=5, img_size=32)
    assert model.head.out_features == 5
    assert str(build(recipe_of(model))) == str(model)


def test_a_timm_model_from_a_local_folder(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32).eval()
    timm.models.save_for_hf(model, tmp_path, model_args={"img_size": 32}, safe_serialization=True)
    again = image_model(str(tmp_path), num_classes=5).eval()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(x), model(x))


def test_a_transformers_model_from_a_local_folder(tmp_path):
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TINY)).eval()
    model.save_pretrained(tmp_path)
    again = text_model(str(tmp_path), "AutoModelForSequenceClassification").eval()
    ids = torch.arange(6)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert str(build(recipe_of(again))) == str(model)


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_gpt2_from_a_folder_comes_with_linear_layers(kind, tmp_path):
    model = tiny("gpt2")
    (model if kind == "GPT2LMHeadModel" else model.base_model).save_pretrained(tmp_path)
    again = text_model(str(tmp_path), "AutoModelForCausalLM" if kind == "GPT2LMHeadModel" else "AutoModel")
    assert type(again).__name__ == kind and len(default_layers(again)) == 2 * 4
    if kind == "GPT2LMHeadModel":
        assert distance(logits(again), logits(model)) < 1e-6
        assert again.lm_head.weight is again.transformer.wte.weight


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_another_language_model_from_a_folder_is_as_it_was(family, tmp_path):
    model = tiny(family)
    model.save_pretrained(tmp_path)
    again = text_model(str(tmp_path), "AutoModelForCausalLM")
    assert str(again) == str(model) and torch.equal(logits(again), logits(model))


def test_an_unknown_name_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match="model = 'vit_gigantic' is neither a folder nor a model timm knows"):
        image_model("vit_gigantic")
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        image_model(str(tmp_path))


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(
        ConnectionError, match=r"'vit_base_patch16_224.augreg2_in21k_ft_in1k' could not be fetched.*local copy"
    ):
        image_model("vit_base_patch16_224.augreg2_in21k_ft_in1k")
    with pytest.raises(ConnectionError, match="'nobody/nothing' could not be fetched"):
        text_model("nobody/nothing", "AutoModelForCausalLM")


@pytest.mark.parametrize("recipe", [{}, {"library": "pickle"}, {"library": "timm", "class": "os.system", "kwargs": {}}])
def test_a_foreign_recipe_is_refused(recipe):
    with pytest.raises(ValueError, match="recipe of"):
        build(recipe)


def test_sources_that_cannot_be_read_are_one_sentence(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32)
    timm.models.save_for_hf(model, tmp_path / "timm", model_args={"img_size": 32}, safe_serialization=True)
    (tmp_path / "timm" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="the model .* could not be read .*local copy"):
        image_model(str(tmp_path / "timm"), num_classes=5)
    transformers.BertForSequenceClassification(transformers.BertConfig(**TINY)).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="could not be read"):
        text_model(str(tmp_path / "bert"), "AutoModelForSequenceClassification")
    for load in (image_model, lambda source: text_model(source, "AutoModel")):
        with pytest.raises(FileNotFoundError, match="is no folder"):
            load(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="could not be read"):
        image_model("vit_tiny_patch16_224", pretrained=False, no_such_argument=1)
