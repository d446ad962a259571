"""A checkpoint is opened whole, or refused by the names of what does not fit."""

import json
import shutil

import pytest
import safetensors.torch
import timm
import torch
import transformers

from prehab_lib.__main__ import main
from prehab_lib.save.models import image_model, text_model
from prehab_lib.scale.skeleton import causal_config, config_of
from prehab_lib.tasks import small_llama
from prehab_lib.tasks.finetune import classifier
from tests.tasks.helpers import opened_text, refuses
from tests.tasks.test_finetune import checkpoint as checkpoint
from tests.tasks.test_finetune import opened
from tests.text_files import causal_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_folders")
CAUSAL = "AutoModelForCausalLM"
FIRST = "model.layers.0.mlp.up_proj.weight"

# What is done to the tensors, to the configuration, and what is said.
HOLES = [
    (lambda t: {f"foo.{k}": v for k, v in t.items()}, {}, r"21 missing \(lm_head.*, …\); 20 unexpected .*foo"),
    (lambda t: {k: v for k, v in t.items() if k != FIRST}, {}, rf"1 missing \({FIRST}\)"),
    (lambda t: t, {"num_hidden_layers": 3}, r"9 missing \(model.layers.2.input_layernorm"),
    (lambda t: t, {"num_hidden_layers": 1}, r"9 unexpected \(model.layers.1."),
    (lambda t: t | {"model.extra.weight": torch.ones(2)}, {}, r"1 unexpected \(model.extra.weight\)"),
    (lambda t: t, {"intermediate_size": 32}, r"6 mismatched \(model.layers.0.mlp.down_proj"),
    (lambda t: t, {"tie_word_embeddings": False}, r"1 missing \(lm_head.weight\)"),
]
WHOLE = [  # tied heads, stored or not; the base model's own names; buffers of older versions
    lambda t: t,
    lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()},
    lambda t: {name.removeprefix("model."): tensor for name, tensor in t.items()},
    lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
]


@pytest.fixture
def llama(tmp_path):
    more = dict(num_hidden_layers=2, tie_word_embeddings=True)
    return causal_model(tmp_path / "llama", "llama", tokenizer=tiny_tokenizer(), **more)


def changed(folder, change=lambda tensors: tensors, **config) -> str:
    copy = f"{folder}-changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    tensors = change(safetensors.torch.load_file(f"{folder}/model.safetensors"))
    safetensors.torch.save_file(tensors, f"{copy}/model.safetensors", {"format": "pt"})
    with open(f"{copy}/config.json", "r+") as file:
        described = json.load(file) | config
        file.seek(0)
        json.dump(described, file)
        file.truncate()
    return copy


@pytest.mark.parametrize(("change", "config", "said"), HOLES)
def test_a_language_model_with_holes_is_refused_at_every_door(llama, tmp_path, capsys, change, config, said):
    folder = changed(llama, change, **config)
    refuses(said, text_model, folder, CAUSAL)
    refuses(said, small_llama.base_model, opened_text(tmp_path), folder, seed=0)
    (tmp_path / "text.txt").write_text("the red house sees a river. " * 60)
    words = ["compress", folder, "--data", tmp_path / "text.txt", "--out", tmp_path / "out", "--window", 16]
    assert main([*map(str, words)]) == 2 and not (tmp_path / "out").exists()
    assert "are not those of its model" in capsys.readouterr().err


def test_tied_names_and_what_transformers_knows_are_no_holes(llama):
    ids = torch.arange(8)[None]
    said = text_model(llama, CAUSAL)(ids).logits
    for change in WHOLE:
        assert torch.equal(text_model(changed(llama, change), CAUSAL)(ids).logits, said)
    assert type(text_model(llama, "AutoModel")).__name__ == "LlamaModel"  # the head is left out, asked for
    refuses("1 unexpected", text_model, changed(llama, lambda t: t | {"model.x.weight": torch.ones(1)}), "AutoModel")


def test_a_new_head_is_new_whole_and_only_where_it_was_asked_for(tmp_path, checkpoint):
    task, auto = opened(tmp_path, checkpoint), "AutoModelForSequenceClassification"
    assert classifier(checkpoint, task)[1] is False
    refuses(r"2 missing \(classifier.bias, classifier.weight\)", text_model, checkpoint, auto)
    layer = "encoder.layer.0.output.dense.weight"
    hole = changed(checkpoint, lambda t: {k: v for k, v in t.items() if k != layer})
    refuses(f"1 missing .bert.{layer}", classifier, hole, task)
    fewer = changed(checkpoint, num_hidden_layers=2)
    refuses("16 missing .bert.encoder.layer.1", classifier, fewer, task)
    refuses("16 unexpected", classifier, _one_layer(checkpoint), task)
    masked = changed(checkpoint, lambda t: {k: v for k, v in t.items() if "pooler" not in k})
    assert classifier(masked, task)[1] is False  # as an encoder trained on masked words
    half = changed(checkpoint, lambda t: {k: v for k, v in t.items() if k != "pooler.dense.bias"})
    refuses("1 missing .bert.pooler.dense.bias", classifier, half, task)
    tuned, _ = classifier(checkpoint, task)
    tuned.save_pretrained(tmp_path / "tuned")
    headless = changed(tmp_path / "tuned", lambda t: {k: v for k, v in t.items() if "classifier" not in k})
    refuses("2 missing .classifier.bias", classifier, headless, task)
    for labels in (2, 5):
        config = transformers.AutoConfig.from_pretrained(checkpoint, num_labels=labels)
        transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "tagger")
        refuses("brings a head of another task .classifier.bias", classifier, str(tmp_path / "tagger"), task)


def _one_layer(folder) -> str:
    """The encoder with a second layer in its file that its configuration does not ask for."""
    return changed(
        folder, lambda t: t | {k.replace("r.0.", "r.1."): v.clone() for k, v in t.items() if "layer.0." in k}
    )


def test_a_timm_checkpoint_with_holes_is_refused(tmp_path):
    folder = tmp_path / "vit"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2)
    timm.models.save_for_hf(model, folder, model_args=dict(img_size=32, depth=2), safe_serialization=True)
    assert torch.equal(image_model(str(folder)).head.weight, model.head.weight)
    for change, said in (
        (lambda t: {f"foo.{k}": v for k, v in t.items()}, "Missing key.*cls_token"),
        (lambda t: {k: v for k, v in t.items() if "blocks.1" not in k}, "Missing key.*blocks.1.norm1"),
        (lambda t: t | {"blocks.2.norm1.bias": torch.ones(192)}, "Unexpected key.*blocks.2.norm1.bias"),
        (lambda t: t | {"norm.bias": torch.ones(5)}, "size mismatch for norm.bias"),
    ):
        refuses(said, image_model, changed(folder, change))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    refuses("holds no safetensors", image_model, str(folder), error=FileNotFoundError)


def test_traps_in_a_configuration_are_refused_before_the_weights(llama, tmp_path, capsys):
    traps = [
        ({"attn_implementation": "evil/kernel"}, "would be code of somebody else"),
        ({"_attn_implementation": "evil/kernel:run"}, "would be code of somebody else"),
        ({"experts_implementation": "evil/kernel"}, "experts_implementation"),
        ({"text_config": {"attn_implementation": "evil/kernel"}}, "would be code of somebody else"),
        ({"num_key_value_heads": 0}, "correct its config.json"),
        ({"intermediate_size": -3}, "correct its config.json"),
        ({"hidden_act": "evil"}, "could not be read .'evil'.: correct its config.json"),
        ({"rope_parameters": {"rope_type": "evil"}}, "correct its config.json"),
        ({"architectures": [5]}, "is a 5: a causal language model is needed"),
    ]
    for config, said in traps:
        refuses(said, causal_config, changed(llama, **config))
    refuses("code of somebody else", text_model, changed(llama, attn_implementation="evil/kernel"), CAUSAL)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("[" * 100_000)
    refuses("the configuration in .* could not be read", config_of, tmp_path / "deep")
    (tmp_path / "llama" / "adapter_config.json").write_text("{}")
    for open_it in (config_of, lambda folder: text_model(folder, CAUSAL)):
        refuses("is an adapter of peft: .*merge_and_unload", open_it, llama)
    assert main(["compress", "x" * 5000, "--data", "y", "--out", str(tmp_path / "out")]) == 2
    assert "too long" in capsys.readouterr().err


def test_buffers_that_older_versions_stored_are_no_holes(tmp_path):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_layers=2, num_heads=2, vocab_size=40)
    config = transformers.GPTNeoConfig(**sizes, attention_types=[[["global"], 2]])
    model = transformers.GPTNeoForCausalLM(config)
    model.save_pretrained(tmp_path / "neo")
    old = {f"transformer.h.0.attn.attention.{name}": torch.ones(1) for name in ("bias", "masked_bias")}
    text_model(changed(tmp_path / "neo", lambda tensors: tensors | old), CAUSAL)
