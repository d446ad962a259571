"""Positions begin at the first real token, and a mask excludes tokens of its own sequence only."""

import pytest
import torch
import transformers as T

from prehab_lib.batches import forward, move
from prehab_lib.methods import METHODS
from prehab_lib.save.rewrite import to_linear
from prehab_lib.scale import stream
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.tasks.perplexity import token_losses
from tests.tasks.helpers import refuses

SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
GATED = SIZES | dict(intermediate_size=24, max_position_embeddings=32)
SHORT = dict(n_layer=2, n_head=2, vocab_size=40)
BART = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in
        dict(layers=1, attention_heads=2, ffn_dim=24).items()}  # fmt: skip
MODELS = {
    "gpt2": (T.GPT2LMHeadModel, T.GPT2Config(n_embd=16, n_positions=32, **SHORT)),
    "opt": (T.OPTForCausalLM, T.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **SIZES)),
    "llama": (T.LlamaForCausalLM, T.LlamaConfig(**GATED)),
    "gpt_neox": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig(**GATED)),
    "bloom": (T.BloomForCausalLM, T.BloomConfig(hidden_size=16, **SHORT)),  # no positions, but distances
    "bert": (T.BertForMaskedLM, T.BertConfig(**GATED)),
    "roberta": (T.RobertaForMaskedLM, T.RobertaConfig(**GATED)),  # counts from its padding token on
    "t5": (T.T5ForConditionalGeneration, T.T5Config(d_model=16, d_kv=8, num_layers=1, num_heads=2, d_ff=24, vocab_size=40)),
    "bart": (T.BartForConditionalGeneration, T.BartConfig(d_model=16, vocab_size=40, max_position_embeddings=32, **BART)),
}  # fmt: skip
LENGTHS = (6, 4, 3)
REAL = sum(LENGTHS)


def model_of(name: str):
    kind, config = MODELS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    to_linear(model)
    return model


def batch_of(left: bool, seed: int = 0, **more) -> dict:
    """Three rows, padded to six tokens on one side."""
    drawn = torch.randint(4, 40, (3, 6), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(3, 6, dtype=torch.long)
    ids = torch.ones(3, 6, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        where = slice(6 - length, 6) if left else slice(0, length)
        ids[row, where], mask[row, where] = drawn[row, :length], 1
    return {"input_ids": ids, "attention_mask": mask} | more


def off(found, right) -> float:
    return max(float((found[n].gram - right[n].gram).norm() / right[n].gram.norm()) for n in right)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_the_side_of_the_padding_changes_no_statistic(name):
    model, needs = model_of(name), {"gram", "influence", "logit_gram"}
    more = {"decoder_input_ids": torch.arange(4, 22).view(3, 6)} if model.config.is_encoder_decoder else {}
    left, right = ([batch_of(side, seed, **more) for seed in (0, 1)] for side in (True, False))
    found, wanted = collect(model, left, needs=needs), collect(model, right, needs=needs)
    assert off(found, wanted) < 1e-6
    for layer in wanted:
        assert found[layer].influence == pytest.approx(wanted[layer].influence, rel=1e-5)
        assert torch.allclose(found[layer].logit_gram, wanted[layer].logit_gram, rtol=0.5, atol=1), (
            layer
        )  # signs differ
    if more:
        refuses("has an encoder and a decoder", stream.collect, model, left, layers=[next(iter(wanted))])
    elif name != "bloom":  # its blocks are no plain row
        assert off(stream.collect(model, left), wanted) < 1e-6
    if not more:
        real = [batch["attention_mask"].bool() for batch in (left[0], right[0])]
        one, other = (forward(model, b[0]).logits[m] for b, m in zip((left, right), real, strict=True))
        assert torch.allclose(one, other, atol=1e-5)
        assert torch.allclose(token_losses(model, left[0])[0], token_losses(model, right[0])[0], atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_an_encoders_mask_is_the_encoders_and_what_reads_it(name):
    """Both sequences are six tokens long, so that a shape tells nothing."""
    model, ids = model_of(name), torch.arange(4, 22).view(3, 6)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[:, 2:] = 0
    for more, in_decoder in (({}, 18), ({"decoder_attention_mask": mask}, 6)):
        batch = batch_of(False, decoder_input_ids=ids, **more)
        for layer, found in collect(model, [batch], needs={"gram", "influence"}).items():
            crossed = "EncDecAttention" in layer or "encoder_attn" in layer
            of_encoder = ".encoder." in f".{layer}" or (crossed and layer.removesuffix("_proj")[-1] in "kv")
            assert found.tokens == (REAL if of_encoder else in_decoder), layer
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_a_texts_mask_is_not_the_images():
    text = GATED | dict(projection_dim=8)
    image = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    image |= dict(intermediate_size=24, image_size=8, patch_size=4)
    model = T.CLIPModel(T.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)).eval()
    drawn = {
        "input_ids": torch.arange(4, 19).view(3, 5),
        "pixel_values": torch.rand(3, 3, 8, 8),
    }  # 5 patches and tokens
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    found = collect(model, [drawn | {"attention_mask": mask}])
    for layer, stats in found.items():
        tokens = {"t": 10, "v": 15}[layer[0]] if "layers" in layer else 3
        assert stats.tokens == tokens, layer


def test_ids_with_a_mask_in_a_tuple_and_weights_without_numbers_are_refused():
    batch, model = batch_of(True), model_of("llama")
    for pair in ((batch["input_ids"], batch["attention_mask"]), [batch["input_ids"], batch["attention_mask"].bool()]):
        refuses("would count its padding: give .*attention_mask", collect, model, [pair])
    images, labels = torch.rand(2, 3), torch.tensor([0, 1])
    for pair in ((images, labels), (batch["input_ids"], torch.tensor([1, 0, 1])), (images, images.round())):
        assert torch.equal(move(pair, "cpu")[1], pair[1])
    whole = collect(model, [batch], needs=METHODS["svd_llm"].needs)
    model.model.layers[1].mlp.to("meta")
    for call in (lambda: collect(model, [batch]), lambda: compress(model, "svd_llm", 0.4, whole)):
        refuses("'model.layers.1.mlp.gate_proj.weight' has no numbers.* without device_map", call)


def test_positions_given_as_none_are_made_as_if_they_were_absent():
    model, batch = model_of("gpt2"), batch_of(left=True)
    with torch.no_grad():
        absent, none = (forward(model, batch | more).logits for more in ({}, {"position_ids": None}))
    assert torch.equal(absent, none)
