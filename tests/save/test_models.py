import re

import timm
import torch

from prehab_lib.layers import default_layers
from prehab_lib.save.models import build, image_model, recipe_of, small_vit, text_model
from tests.families import bert, distance, logits, tiny
from tests.save.test_storage import refused

NAME = "vit_base_patch16_224.augreg2_in21k_ft_in1k"


def timm_folder(path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32).eval()
    timm.models.save_for_hf(model, path, model_args={"img_size": 32}, safe_serialization=True)
    return model


def test_a_seed_makes_the_weights_and_leaves_the_callers_random_state():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, other, third = small_vit(1, 16, 2, seed=1), small_vit(1, 16, 2, seed=1), small_vit(1, 16, 2, seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.head.weight, other.head.weight) and not torch.equal(one.head.weight, third.head.weight)
    assert one(torch.zeros(2, 1, 8, 16)).shape == (2, 100)


def test_a_timm_model_by_name_and_from_a_local_folder(tmp_path):
    model = image_model("vit_tiny_patch16_224", pretrained=False)
    assert str(build(recipe_of(model))) == str(model)
    model, x = timm_folder(tmp_path), torch.rand(1, 3, 32, 32)
    again = image_model(str(tmp_path)).eval()
    assert torch.equal(again(x), model(x)) and str(build(recipe_of(again))) == str(model)


def test_a_transformers_model_from_a_folder_is_as_it_was(tmp_path):
    for family, kind in (("bert", "SequenceClassification"), ("llama", "CausalLM"), ("opt", "CausalLM")):
        model = tiny(family)
        model.save_pretrained(tmp_path / family)
        again = text_model(str(tmp_path / family), f"AutoModelFor{kind}")
        assert str(again) == str(model) == str(build(recipe_of(again))), family
        assert torch.equal(logits(again), logits(model)), family
        assert str(tmp_path) not in str(recipe_of(again)), family  # a saved folder does not tell its origin's place


def test_gpt2_from_a_folder_comes_with_linear_layers(tmp_path):
    model = tiny("gpt2")
    for source, auto in ((model, "AutoModelForCausalLM"), (model.base_model, "AutoModel")):
        source.save_pretrained(tmp_path / auto)
        again = text_model(str(tmp_path / auto), auto)
        assert isinstance(again, type(source)) and len(default_layers(again)) == 2 * 4
        if auto == "AutoModelForCausalLM":
            assert distance(logits(again), logits(model)) < 1e-6
            assert again.lm_head.weight is again.transformer.wte.weight


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    said = refused(ConnectionError, image_model, NAME)
    assert f"'{NAME}' could not be fetched" in said and "local copy" in said
    said = refused(ConnectionError, text_model, "nobody/nothing", "AutoModelForCausalLM")
    assert "'nobody/nothing' could not be fetched" in said


def test_a_foreign_recipe_is_refused():
    os_system = {"library": "timm", "class": "os.system", "kwargs": {}}
    for recipe in ({}, {"library": "pickle"}, os_system, {"library": "timm", "name": "nope", "kwargs": {}}):
        assert "recipe of" in refused(ValueError, build, recipe), recipe


def test_sources_that_cannot_be_read_are_one_sentence(tmp_path):
    timm_folder(tmp_path / "timm")
    bert().save_pretrained(tmp_path / "bert")
    for kind in ("timm", "bert"):
        (tmp_path / kind / "model.safetensors").write_bytes(b"torn")
    (tmp_path / "empty").mkdir()
    nowhere, classifier = str(tmp_path / "nowhere"), "AutoModelForSequenceClassification"
    for load, problem, says in (
        (lambda: image_model(str(tmp_path / "timm")), ValueError, "could not be read .*local copy"),
        (lambda: text_model(str(tmp_path / "bert"), classifier), ValueError, "could not be read .*local copy"),
        (lambda: image_model(nowhere), FileNotFoundError, "is no folder"),
        (lambda: text_model(nowhere, "AutoModel"), FileNotFoundError, "is no folder"),
        (lambda: image_model(str(tmp_path / "empty")), FileNotFoundError, "has no config.json"),
        (lambda: image_model("vit_gigantic"), ValueError, "'vit_gigantic' is neither a folder nor a model timm knows"),
    ):
        assert re.search(says, refused(problem, load)), says
