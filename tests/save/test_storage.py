"""What is saved comes back to the last bit, or the error names what is wrong."""

import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE as WEIGHTS
from safetensors import SafetensorError
from torch import nn

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import default_layers
from prehab_lib.save.files import DESCRIPTION
from prehab_lib.save.models import small_vit
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.tokenizers import train_bpe
from tests.families import FAMILIES, gpt2, llama, logits, tiny, vit

DTYPES = (torch.float32, torch.bfloat16)


def read(folder):
    return json.loads((folder / DESCRIPTION).read_text())


def rewrite(folder, change):
    description = read(folder)
    change(description)
    (folder / DESCRIPTION).write_text(json.dumps(description))


def names(folder):
    return {file.name for file in folder.iterdir()}


def low_rank():
    model = vit()
    compress(model, "svd", 0.4)
    return model


def same(model, folder):
    return torch.equal(logits(load(folder)), logits(model))


def refused(kind, work, *args, **kwargs):
    """What the error says that the work must raise; any other error, and none, says what it is instead."""
    try:
        work(*args, **kwargs)
    except kind as problem:
        return str(problem)
    except Exception as problem:
        return f"not {kind.__name__}, but {problem!r}"
    return "nothing was raised"


def test_outputs_come_back_to_the_last_bit(tmp_path):
    for make, x in (
        (lambda: small_vit(depth=2, width=32, heads=4), torch.rand(3, 1, 8, 16)),
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32), torch.rand(2, 3, 32, 32)),
        (lambda: vit(num_heads=2, global_pool="avg"), torch.rand(2, 3, 16, 16)),
    ):
        for dtype in DTYPES:
            model = make()
            compress(model, "svd", 0.4)
            model, x = model.to(dtype).eval(), x.to(dtype)
            folder, where = save(model, tmp_path / "model"), f"{tuple(x.shape)} in {dtype}"
            again = load(folder)
            assert torch.equal(again(x), model(x)), where
            assert names(folder) == {WEIGHTS, DESCRIPTION, "README.md"}, where
            assert not again.training and all(p.requires_grad for p in again.parameters()), where


def test_a_dense_model_stays_of_its_own_type(tmp_path):
    for family in FAMILIES:
        model = tiny(family)
        folder = save(model, tmp_path / family)
        assert type(load(folder)) is type(model) and same(model, folder), family
        assert "README.md" not in names(folder), family


def rewritten(model, *rewrites):
    for rewrite in rewrites:
        rewrite(model)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_rewritten_models_come_back_to_the_last_bit(dtype, tmp_path):
    qkv, c_attn = "blocks.{}.attn.qkv.{}", "transformer.h.{}.attn.c_attn.{}"
    straight = default_layers(rewritten(gpt2(), to_linear))[1::3]
    for make, rewrites, layers in (
        (vit, [split_qkv], [qkv.format(0, "q"), qkv.format(0, "v"), qkv.format(1, "k")]),
        (lambda: vit(qkv_bias=False), [split_qkv], [qkv.format(0, "k")]),
        (gpt2, [], []),
        (gpt2, [to_linear], straight),
        (gpt2, [split_qkv], [c_attn.format(0, "q"), c_attn.format(0, "v"), c_attn.format(1, "k")]),
        (gpt2, [to_linear, split_qkv], [c_attn.format(0, "q"), c_attn.format(1, "k")]),
    ):
        for chosen in ([], layers):
            where = f"{make} {rewrites} {chosen}"
            model = rewritten(make(), *reversed(rewrites)).to(dtype)
            if chosen:
                compress(model, "svd", 0.4, layers=chosen)
            folder = save(model, tmp_path / "model")
            again = load(folder)
            assert torch.equal(logits(again), logits(model)) and str(again) == str(model), where
            assert read(folder)["rewrites"] == [done.__name__ for done in rewrites], where
            assert same(model, save(again, tmp_path / "twice")), where


def test_a_timm_model_in_shards_and_merged(tmp_path):
    model = low_rank()
    folder = save(model, tmp_path / "shards", max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 2 and same(model, folder)
    dense = load(save(model, tmp_path / "dense", merged=True))
    assert not any(isinstance(module, LowRankLinear) for module in dense.modules())
    torch.testing.assert_close(logits(dense), logits(model))


def test_what_does_not_fit_the_weights_is_refused_and_not_reinitialised(tmp_path):
    for model, change, says in (
        (low_rank(), lambda d: d["ranks"].update({"blocks.0.mlp.fc1": 3}), "size mismatch for blocks.0.mlp.fc1"),
        (low_rank(), lambda d: d["ranks"].pop("blocks.1.mlp.fc2"), 'Missing key(s) in state_dict: "blocks.1.mlp.fc2.'),
        (vit(), lambda d: d["recipe"]["kwargs"].update(depth=3), 'Missing key(s) in state_dict: "blocks.2'),
        (vit(), lambda d: d["recipe"]["kwargs"].update(depth=1), 'Unexpected key(s) in state_dict: "blocks.1'),
        (rewritten(vit(), split_qkv), lambda d: d.update(rewrites=[]), 'Missing key(s) in state_dict: "blocks.0'),
        (rewritten(gpt2(), to_linear), lambda d: d.update(rewrites=[]), "is mismatched"),
        (llama(), lambda d: d["recipe"]["config"].update(num_hidden_layers=3), "is missing"),
    ):
        folder = save(model, tmp_path / "model")
        rewrite(folder, change)
        assert says in refused(ValueError, load, folder)


def test_what_no_recipe_rebuilds_is_refused_before_anything_is_written(tmp_path):
    other, part, more = vit(), gpt2(), vit()
    other.blocks[0].mlp.act = nn.ReLU()
    for block, linear in zip(part.transformer.h, rewritten(gpt2(), to_linear).transformer.h, strict=True):
        block.mlp.c_fc = linear.mlp.c_fc
    more.register_buffer("extra", torch.zeros(2))
    for model, says in (
        (nn.Sequential(nn.Linear(2, 2)), "neither of timm.create_model nor of transformers"),
        (other, "it has '(act): ReLU()' where the recipe gives \"(act): GELU"),
        (part, "where the recipe gives '(c_fc): Conv1D"),
        (more, "it has 'extra' where the recipe gives 'head.bias'"),
    ):
        assert says in refused(ValueError, save, model, tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


class NoRoom(Exception):
    """As tokenizers raise it: of no class that says what it is."""


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ("safetensors.torch.save_file", OSError(28, "No space left on device")),  # what huggingface_hub calls
        ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device")),
        ("transformers.PreTrainedTokenizerBase.save_pretrained", NoRoom("No space left on device")),
        ("transformers.PreTrainedConfig.save_pretrained", OSError(28, "No space left on device")),
        ("pathlib.Path.write_text", OSError(28, "No space left on device")),
        ("tempfile.mkdtemp", OSError(30, "Read-only file system")),
        ("pathlib.Path.mkdir", OSError(30, "Read-only file system")),
        ("pathlib.Path.rename", PermissionError(13, "Permission denied")),
    ],
)
def test_a_disk_that_takes_nothing_is_one_sentence_and_the_old_model_survives(step, problem, tmp_path, monkeypatch):
    folder, tokenizer = save(llama(), tmp_path / "model"), train_bpe(["some text"], 300)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args, **_):
        if step.endswith("save_file"):
            Path(args[1]).write_bytes(b"torn")
        raise problem

    with monkeypatch.context() as disk:
        disk.setattr(step, full)
        said = refused(OSError, save, llama(), folder, tokenizer=tokenizer)
    assert "could not be written" in said and "is there space left" in said and "\n" not in said, said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert names(folder.parent) == {"model"}


def test_a_target_that_is_no_place_for_a_folder_is_refused_before_anything(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for target in (loop, loop / "model", tmp_path / ("x" * 300)):
        said = refused(ValueError, save, vit(), target)
        assert "cannot be a model's folder" in said and len(said) < 500, said


def test_two_weights_in_one_piece_of_memory_are_both_written(tmp_path):
    model = llama(tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.detach())
    compress(model, "svd", 0.4)
    for merged in (False, True):
        again = load(save(model, tmp_path / "model", merged=merged))
        assert torch.allclose(logits(again), logits(model), atol=1e-5), merged
