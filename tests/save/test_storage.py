import json
from pathlib import Path

import pytest
import timm
import torch
import transformers
from torch import nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import default_layers
from prehab_lib.save import storage
from prehab_lib.save.files import WEIGHTS
from prehab_lib.save.models import small_vit
from prehab_lib.save.rewrite import to_linear
from prehab_lib.surgery import compress, load, save
from tests.families import FAMILIES, inputs_of, tiny

TEXT = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
IDS = torch.arange(24).view(2, 12)


def timm_small():
    return small_vit(depth=2, width=32, heads=4), torch.rand(3, 1, 8, 16)


def timm_named():
    return timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32), torch.rand(2, 3, 32, 32)


def timm_by_hand():
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, global_pool="avg"
    )
    return model, torch.rand(2, 3, 16, 16)


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **TEXT)), IDS


def llama_tied():
    config = transformers.LlamaConfig(num_key_value_heads=2, tie_word_embeddings=True, **TEXT)
    return transformers.LlamaForCausalLM(config), IDS


def output(model, x):
    with torch.no_grad():
        out = model.eval()(x)
    return getattr(out, "logits", out)


@pytest.mark.parametrize("make", [timm_small, timm_named, timm_by_hand, bert, llama_tied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_come_back_to_the_last_bit(make, dtype, tmp_path):
    model, x = make()
    compress(model, "svd", 0.4)
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    assert not again.training
    assert float((output(again, x) - output(model, x)).abs().max()) == 0.0
    files = {"model.safetensors", "prehab.json"}
    if isinstance(model, transformers.PreTrainedModel):
        rotary_in_half = make is llama_tied and dtype == torch.bfloat16  # its one buffer then lies with the weights
        files |= {"config.json", "README.md"} | (set() if rotary_in_half else {"buffers.safetensors"})
        files |= {"generation_config.json"} if model.can_generate() else set()
    assert {f.name for f in (tmp_path / "model").iterdir()} == files


def test_tied_weights_stay_tied(tmp_path):
    model, _ = llama_tied()
    again = load(save(model, tmp_path / "model"))
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_dense_and_a_mixed_model_round_trip(tmp_path):
    model, x = timm_small()
    assert torch.equal(output(load(save(model, tmp_path / "dense")), x), output(model, x))
    compress(model, "svd", 0.4, layers=["blocks.0.mlp.fc1"])
    assert torch.equal(output(load(save(model, tmp_path / "mixed")), x), output(model, x))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_round_trips_with_some_layers_dense(family, tmp_path):
    model = tiny(family)
    to_linear(model)
    names = default_layers(model)
    compress(model, "svd", 0.4, layers=names[::2])
    again = load(save(model, tmp_path / "model"))
    assert torch.equal(output(again, inputs_of(again)), output(model, inputs_of(model)))
    assert [type(again.get_submodule(name)) for name in names] == [LowRankLinear, nn.Linear] * (len(names) // 2) + [
        LowRankLinear
    ] * (len(names) % 2)


def test_a_loaded_model_can_be_saved_and_trained(tmp_path):
    model, x = timm_small()
    compress(model, "svd", 0.4)
    again = load(save(model, tmp_path / "a"))
    assert all(p.requires_grad for p in again.parameters())
    assert torch.equal(output(load(save(again, tmp_path / "b")), x), output(model, x))


@pytest.fixture
def folder(tmp_path):
    model, _ = timm_small()
    compress(model, "svd", 0.4)
    return save(model, tmp_path / "model", removed=0.4)


def rewrite(folder, change):
    path = folder / storage.DESCRIPTION
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_other_ranks_are_refused(folder):
    rewrite(folder, lambda d: d["ranks"].update({"blocks.0.mlp.fc1": 3}))
    with pytest.raises(ValueError, match=r"blocks.0.mlp.fc1.*has shape .* the model needs"):
        load(folder)


def test_other_names_are_refused_and_not_reinitialised(folder):
    rewrite(folder, lambda d: d["ranks"].pop("blocks.1.mlp.fc2"))
    with pytest.raises(ValueError, match=r"lacks 'blocks.1.mlp.fc2.bias'"):
        load(folder)
    rewrite(folder, lambda d: d["recipe"]["kwargs"].update(depth=1))
    with pytest.raises((ValueError, AttributeError)):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_a_damaged_file_is_named(folder, keep):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load(folder)


def test_damaged_or_foreign_descriptions_are_named(folder):
    (folder / storage.DESCRIPTION).write_text("{")
    with pytest.raises(ValueError, match=r"prehab.json is damaged"):
        load(folder)
    (folder / storage.DESCRIPTION).write_text("{}")
    with pytest.raises(ValueError, match="another format"):
        load(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prehab.json is missing"):
        load(tmp_path / "nowhere")
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        load(folder)


def test_a_model_without_a_recipe_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="neither a timm nor a transformers model"):
        save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_recipe_is_found_when_saving(tmp_path):
    model, _ = timm_small()
    model.blocks[0].mlp.act = nn.ReLU()
    with pytest.raises(ValueError, match=r"it has '\(act\): ReLU\(\)' where the recipe gives .\(act\): GELU"):
        save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_sentence_and_the_old_model_survives(folder, monkeypatch):
    before = (folder / WEIGHTS).read_bytes()

    def full(tensors, path, **_):
        Path(path).write_bytes(b"torn")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)  # what huggingface_hub calls
    model, _ = timm_small()
    with pytest.raises(OSError, match=r"could not be written .* is there space left"):
        save(model, folder)
    assert (folder / WEIGHTS).read_bytes() == before
    assert [f.name for f in folder.parent.iterdir()] == ["model"]


def test_a_second_save_replaces_the_first(folder):
    model, x = timm_small()
    save(model, folder)
    assert torch.equal(output(load(folder), x), output(model, x))
    assert [f.name for f in folder.parent.iterdir()] == ["model"]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    model, _ = timm_small()
    for target in (tmp_path / "home", tmp_path / "home" / "thesis.tex"):
        with pytest.raises(ValueError, match="holds other files than a saved model"):
            save(model, target)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save(model, tmp_path / "empty")


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["ranks"].update({"blocks.0.mlp.fc1": "x"}),
        lambda d: d["ranks"].update({"blocks.0.mlp.fc1": -3}),
        lambda d: d["ranks"].update({"blocks.0.norm1": 2}),
        lambda d: d["ranks"].update({"nowhere": 2}),
        lambda d: d.update(recipe=None),
        lambda d: d.update(tied=[]),
        lambda d: d.update(rewrites="split_qkv"),
        lambda d: d.update(rewrites=["os.system"]),
        lambda d: d.update(rewrites=[{}]),
        lambda d: d["recipe"].pop("kwargs"),
        lambda d: d["recipe"]["kwargs"].update(checkpoint_path="weights.pth"),
        lambda d: d["recipe"].update(name="nope"),
        lambda d: d.update(recipe={"library": "transformers", "class": "pipeline", "config": {}, "attention": "sdpa"}),
    ],
)
def test_a_tampered_description_is_one_sentence(folder, change):
    rewrite(folder, change)
    with pytest.raises(ValueError, match=r"describes no model this version can build|another format"):
        load(folder)
