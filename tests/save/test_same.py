"""What is saved opens as the same function in every way it can be opened, or saving refuses in one sentence."""

import copy
import pickle
from functools import partial

import pytest
import timm
import torch
import transformers
from torch import nn

from prehab_lib.rivals.quantised import quantise
from prehab_lib.save import storage
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress, load, save
from tests.families import ASKED, IDS, SIZES, bert, distance, gpt2, headed, llama, logits, opt, vit
from tests.save.test_pretrained import cut, opened
from tests.save.test_storage import refused

TINY = partial(timm.create_model, num_classes=5, embed_dim=24)
VIT = partial(TINY, "vit_tiny_patch16_224", img_size=32, depth=1)
SWIN = partial(TINY, "swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1))
BEIT = partial(TINY, "beit_base_patch16_224", img_size=32, depth=1, num_heads=2)


def test_a_timm_model_comes_back_with_whatever_it_was_made_with(tmp_path):
    for make in (
        *(partial(VIT, num_heads=heads) for heads in (2, 6)),
        partial(VIT, reg_tokens=4, no_embed_class=True),
        partial(VIT, pos_embed="none", pre_norm=True, act_layer="relu", init_values=1e-5),
        partial(VIT, class_token=False, global_pool="avg", qk_norm=True),
        partial(SWIN, window_size=4, num_heads=(3, 6)),
        partial(SWIN, window_size=2, num_heads=(2, 2)),
        BEIT,
        partial(vit, reg_tokens=2),
    ):
        model = make().eval()
        compress(model, "svd", 0.4)
        x = torch.rand(2, 3, *model.patch_embed.img_size)
        with torch.no_grad():
            assert distance(load(save(model, tmp_path / "model"))(x), model(x)) < 1e-6, make
            assert "from prehab_lib.surgery import load" in (tmp_path / "model" / "README.md").read_text()
            assert distance(load(save(model, tmp_path / "model", merged=True))(x), model(x)) < 1e-4, make


def other_scale(model):
    model.model.layers[1].self_attn.scaling *= 2


def other_heads(model):
    model.blocks[1].attn.num_heads, model.blocks[1].attn.head_dim = 2, 16


def other_positions(model):
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}


def a_hook(model):
    model.bert.encoder.layer[0].output.register_forward_hook(lambda module, args, out: 2 * out)


class Doubled(transformers.OPTForCausalLM):
    """A class of the user's own."""


@pytest.mark.parametrize(
    ("make", "change", "says"),
    [
        (llama, other_scale, "'model.layers.1.self_attn.o_proj.V' is off by"),
        (vit, other_heads, "'blocks.1.attn.q_norm' is off by"),
        (llama, other_positions, "is off by"),
        (bert, a_hook, "'bert.encoder.layer.0.output' is off by"),
        (VIT, lambda model: model.reset_classifier(5, "avg"), "'fc_norm"),
        (
            partial(VIT, norm_layer=nn.LayerNorm),
            None,
            "would not reopen as it is (Object of type type is not JSON serializable)",
        ),
        (lambda: Doubled(opt().config), None, "class 'Doubled' is not known"),
        (lambda: llama().to("meta"), None, "it is on the device meta"),
    ],
)
def test_what_would_reopen_as_another_function_is_refused_and_nothing_changes(make, change, says, tmp_path):
    folder = save(bert(), tmp_path / "model")
    before, model = {path.name: path.read_bytes() for path in folder.iterdir()}, make()
    if change is not None:
        change(model)
    if not next(model.parameters()).is_meta:
        compress(model, "svd", 0.4)
        if hasattr(model, "save_pretrained"):
            assert says in refused(ValueError, model.save_pretrained, tmp_path / "other")
    for merged in (False, True):
        said = refused(ValueError, save, model, folder, merged=merged)
        assert says in said and "\n" not in said, said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def untied(make):
    model = make(tie_word_embeddings=True)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0))
    return model


def tied_late():
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


@pytest.mark.parametrize("make", [partial(untied, llama), partial(untied, gpt2), tied_late])
def test_a_head_is_tied_as_it_is_in_memory(make, tmp_path):
    for merged in (False, True):
        for model in (make(), cut(make())):
            folder = save(model, tmp_path / "model", merged=merged)
            for again in (load(folder), opened(folder)):
                assert distance(logits(again), logits(model)) < 1e-5 * merged + 1e-12


def twice():
    model = llama()
    compress(model, "svd", 0.4, layers=["model.layers.0.mlp.up_proj"])
    compress(model, "svd", 0.6, layers=["model.layers.1.mlp.up_proj"])
    return model


def rewritten(*rewrites):
    model = gpt2()
    for rewrite in rewrites:
        rewrite(model)
    return model


def test_save_pretrained_of_transformers_writes_what_transformers_opens(tmp_path):
    for number, model in enumerate(
        (
            cut(llama()),
            cut(llama().bfloat16()),
            cut(llama()).bfloat16(),
            twice(),
            cut(untied(llama)),
            rewritten(to_linear),
            cut(rewritten(split_qkv), every=3),
            quantise(cut(llama())),
            quantise(llama(), layers=["model.layers.0.mlp.up_proj"]),
            pickle.loads(pickle.dumps(cut(llama()))),
            copy.deepcopy(cut(llama())),
        )
    ):
        model.save_pretrained(tmp_path / str(number), max_shard_size="20KB")
        again = opened(tmp_path / str(number))
        assert torch.equal(logits(again), logits(model)) and type(again) is type(model), number
    again = opened(tmp_path / "0")
    compress(again, "svd", 0.7, layers=["model.layers.1.mlp.down_proj", "model.layers.0.mlp.up_proj"])
    again.save_pretrained(tmp_path / "further")  # the ranks it was opened with are not those any more
    assert torch.equal(logits(opened(tmp_path / "further")), logits(again))


def test_the_comparison_holds_no_second_copy_of_the_weights(tmp_path, monkeypatch):
    model, places = cut(ASKED["T5"]()), []

    def seen(model, other, *_, **__):
        ours, theirs = (dict(each.named_parameters()) for each in (model, other))
        places.extend(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)

    monkeypatch.setattr(storage, "check_same", seen)
    save(model, tmp_path / "model")
    assert places and all(places)


def test_a_model_that_cannot_be_fed_asks_for_an_example(tmp_path):
    model = headed("Bert", "ForMultipleChoice", **SIZES)
    compress(model, "svd", 0.4)
    said = refused(ValueError, save, model, tmp_path / "model")
    assert "could not be run on a small input" in said and "example=" in said and not list(tmp_path.iterdir())
    example = {"input_ids": IDS[None]}
    again = load(save(model, tmp_path / "model", example=example))
    assert distance(again(**example)[0], model.eval()(**example)[0]) < 1e-6
