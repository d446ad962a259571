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

TIMM_VIT = partial(timm.create_model, "vit_tiny_patch16_224", img_size=32, num_classes=5, depth=1, embed_dim=24)
TIMM_SWIN = partial(timm.create_model, "swin_tiny_patch4_window7_224", img_size=64, num_classes=5, depths=(1, 1))


@pytest.mark.parametrize(
    "make",
    [
        *(partial(TIMM_VIT, num_heads=heads) for heads in (2, 6)),
        partial(TIMM_VIT, reg_tokens=4),
        partial(TIMM_VIT, no_embed_class=True),
        partial(TIMM_VIT, pos_embed="none", pre_norm=True, act_layer="relu", init_values=1e-5),
        partial(TIMM_VIT, class_token=False, global_pool="avg", qk_norm=True),
        partial(TIMM_SWIN, window_size=4, embed_dim=24, num_heads=(3, 6)),
        partial(TIMM_SWIN, window_size=2, embed_dim=24, num_heads=(2, 2)),
        partial(timm.create_model, "beit_base_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2),
        partial(vit, reg_tokens=2),
    ],
    ids=str,
)
def test_a_timm_model_comes_back_with_whatever_it_was_made_with(make, tmp_path):
    model = make().eval()
    compress(model, "svd", 0.4)
    again, side = load(save(model, tmp_path / "model")), model.patch_embed.img_size[0]
    x = torch.rand(2, 3, side, side)
    with torch.no_grad():
        assert distance(again(x), model(x)) < 1e-6
        assert distance(load(save(model, tmp_path / "dense", merged=True))(x), model(x)) < 1e-4
    assert "from prehab_lib.surgery import load" in (tmp_path / "model" / "README.md").read_text()


def rescaled():
    model = llama()
    model.model.layers[1].self_attn.scaling *= 2
    return model


def reheaded():
    model = vit()
    model.blocks[1].attn.num_heads, model.blocks[1].attn.head_dim = 2, 16
    return model


def other_positions():
    model = llama()
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    return model


def hooked():
    model = bert()
    model.bert.encoder.layer[0].output.register_forward_hook(lambda module, args, out: 2 * out)
    return model


class Doubled(transformers.OPTForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


def no_json():
    return TIMM_VIT(norm_layer=nn.LayerNorm)


def repooled():
    model = TIMM_VIT()
    model.reset_classifier(5, "avg")
    return model


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (rescaled, "'model.layers.1.self_attn.o_proj.V' is off by"),
        (reheaded, "'blocks.1.attn.q_norm' is off by"),
        (other_positions, "is off by"),
        (hooked, "'bert.encoder.layer.0.output' is off by"),
        (lambda: Doubled(opt().config), "class 'Doubled' is not known"),
        (no_json, "holds what JSON cannot (Object of type type"),
        (repooled, "'fc_norm"),
    ],
)
def test_what_would_reopen_as_another_function_is_refused_and_nothing_changes(make, says, merged, tmp_path):
    folder = save(bert(), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = make()
    compress(model, "svd", 0.4)
    said = refused(ValueError, save, model, folder, merged=merged)
    assert says in said and "\n" not in said, said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    if hasattr(model, "save_pretrained"):
        assert says in refused(ValueError, model.save_pretrained, tmp_path / "other")
        assert not (tmp_path / "other").exists()


def untied(make):
    model = make(tie_word_embeddings=True)
    torch.manual_seed(1)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


def tied_late():
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


@pytest.mark.parametrize(
    "make", [lambda: untied(llama), lambda: untied(gpt2), tied_late], ids=["llama", "gpt2", "tied late"]
)
def test_a_head_is_tied_as_it_is_in_memory(make, tmp_path):
    dense, model = make(), cut(make())
    for again in (load(save(dense, tmp_path / "dense")), opened(tmp_path / "dense")):
        assert torch.equal(logits(again), logits(dense))
    for again in (load(save(model, tmp_path / "cut")), opened(tmp_path / "cut")):
        assert torch.equal(logits(again), logits(model))
    for again in (load(save(model, tmp_path / "merged", merged=True)), opened(tmp_path / "merged")):
        assert distance(logits(again), logits(model)) < 1e-5


def twice():
    model = llama()
    compress(model, "svd", 0.4, layers=["model.layers.0.mlp.up_proj"])
    compress(model, "svd", 0.6, layers=["model.layers.1.mlp.up_proj"])
    return model


def split():
    model = gpt2()
    split_qkv(model)
    return cut(model, every=3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: cut(llama()),
        lambda: cut(llama().bfloat16()),
        lambda: cut(llama()).bfloat16(),
        lambda: cut(gpt2()),
        split,
        twice,
        lambda: quantise(cut(llama())),
        lambda: quantise(llama()),
        lambda: cut(untied(llama)),
        lambda: pickle.loads(pickle.dumps(cut(llama()))),
        lambda: copy.deepcopy(cut(llama())),
    ],
)
def test_save_pretrained_of_transformers_writes_what_transformers_opens(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "first", max_shard_size="20KB")
    again = opened(tmp_path / "first")
    assert torch.equal(logits(again), logits(model)) and type(again) is type(model)
    layers = [n for n, part in again.named_modules() if type(part) is nn.Linear and n.endswith(("mlp.down_proj",))]
    if layers:  # cut further: the ranks in the earlier configuration are not those any more
        compress(again, "svd", 0.7, layers=layers)
        again.save_pretrained(tmp_path / "second")
        assert torch.equal(logits(opened(tmp_path / "second")), logits(again))


def test_save_pretrained_of_what_was_only_made_linear_and_of_a_backbone(tmp_path):
    model = gpt2()
    to_linear(model)
    model.save_pretrained(tmp_path / "linear")
    assert torch.equal(logits(opened(tmp_path / "linear")), logits(model))
    model = cut(llama())
    model.model.save_pretrained(tmp_path / "bare")
    again, info = transformers.AutoModel.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_the_comparison_holds_no_second_copy_of_the_weights(tmp_path, monkeypatch):
    model, places = cut(ASKED["T5"]()), []

    def seen(model, other, *_, **__):
        ours, theirs = (dict(each.named_parameters()) for each in (model, other))
        places.extend(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)

    monkeypatch.setattr(storage, "check_same", seen)
    save(model, tmp_path / "model")
    assert places and all(places)


def test_a_model_that_cannot_be_fed_asks_for_an_example_and_one_without_values_is_refused(tmp_path):
    model = headed("Bert", "ForMultipleChoice", **SIZES)
    compress(model, "svd", 0.4)
    said = refused(ValueError, save, model, tmp_path / "model")
    assert "could not be run on a small input" in said and "example=" in said and not list(tmp_path.iterdir())
    example = {"input_ids": IDS[None]}
    again = load(save(model, tmp_path / "model", example=example))
    assert distance(again(**example).logits, model.eval()(**example).logits) < 1e-6
    said = refused(ValueError, save, llama().to("meta"), tmp_path / "meta")
    assert "is on the meta device" in said and not (tmp_path / "meta").exists()


def test_a_layer_of_which_forward_reads_the_weight_alone_is_said_clearly():
    from prehab_lib.stats import collect

    model = timm.create_model("beit_base_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2)
    said = refused(ValueError, collect, model, [(torch.rand(4, 3, 32, 32), torch.zeros(4))], None)
    assert "'blocks.0.attn.qkv'" in said and "only read its weight (F.linear)? leave it out" in said
