"""The 8-bit grid and the layer on it; models in 8 bits: their bytes, and the way through save, load, transformers."""

import itertools

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.layers import default_layers
from prehab_lib.rehab import rehab
from prehab_lib.rivals import quantised
from prehab_lib.rivals.correction import projected_gradient
from prehab_lib.rivals.svd_llm_update import closed_form
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress, load, save
from prehab_lib.weightings import decompose_all
from tests.families import FAMILIES, distance, llama, logits, tiny
from tests.helpers import Toy, random_factors, toy_batches
from tests.stack import refuses


def rounded(F):
    """Q(f) of each vector of F (k, d), float32."""
    scale = quantised.absmax_scales(F)
    return quantised.from_codes(quantised.to_codes(F, scale), scale)


FREQUENCIES = 2 * 4 * 4  # bytes of the two buffers of rotary positions, which are kept where they were rounded


def stored_bytes(module) -> int:
    """Of all parameters and kept buffers, each once: what `save` writes beside headers and rounded frequencies."""
    return sum(tensor.nbytes for tensor in {id(t): t for t in module.state_dict(keep_vars=True).values()}.values())


def vectors(k=9, d=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(k, d, dtype=torch.float64, generator=generator) * torch.logspace(-9, 5, k).double()[:, None]


def inputs(n=12):
    return torch.randn(3, n, generator=torch.Generator().manual_seed(1))


def test_no_entry_moves_by_more_than_half_a_step():
    F = vectors()
    scale, largest = quantised.absmax_scales(F), F.abs().amax(1)
    codes = quantised.to_codes(F, scale)
    assert scale.dtype == torch.float16 and codes.dtype == torch.int8
    assert ((rounded(F).double() - F).abs() <= scale.double()[:, None] / 2).all()
    assert (codes.abs() <= 127).all() and (scale.double() >= largest / 127).all()
    normal = largest > 127 * 6.2e-5  # fp16 has its full precision there
    assert (scale.double()[normal] <= largest[normal] / 127 * 1.001).all()
    assert (codes.abs().amax(1)[normal] >= 126).all()  # all levels are in use


def test_zero_vectors_stay_zero_and_what_fp16_cannot_say_is_refused():
    F = vectors(3)
    F[1] = 0
    assert torch.equal(rounded(F)[1], torch.zeros(40)) and quantised.absmax_scales(F)[1] == 0
    for bad in (float("nan"), float("inf"), 1e8):
        F[2, 5] = bad
        with pytest.raises(ValueError, match="NaN, infinite or huge entries: no fp16 scale fits it"):
            rounded(F)


# The layers


@pytest.mark.parametrize("layout", quantised.LAYOUTS)
@pytest.mark.parametrize(("m", "n"), [(20, 12), (12, 20), (16, 16)])
def test_a_low_rank_layer_computes_with_its_rounded_factors(layout, m, n):
    model = nn.Sequential(random_factors(m, n, 5))
    U, V, bias = model[0].U.weight.detach().clone(), model[0].V.weight.detach().clone(), model[0].U.bias
    assert quantised.quantise(model, layout) is model
    Q = {"U": rounded(U.T).T, "V": rounded(V)}
    if layout == "remap" and m >= n:  # what the larger factor has beyond the smaller side is fp16
        Q["U"] = torch.cat([rounded(U[:n].T).T, U[n:].half().float()])
    elif layout == "remap":
        Q["V"] = torch.cat([rounded(V[:, :m]), V[:, m:].half().float()], dim=1)
    assert torch.equal(model[0].U.weight, Q["U"]) and torch.equal(model[0].V.weight, Q["V"])
    x = inputs(n)
    torch.testing.assert_close(model(x), x @ Q["V"].T @ Q["U"].T + bias, rtol=1e-5, atol=1e-4)
    assert model[0].U.bias is bias and isinstance(bias, nn.Parameter)
    assert [name for name, _ in model.named_parameters()] == ["0.U.bias"]
    stored = {"int8": 5 * (m + n), "remap": 2 * 5 * max(m, n)}[layout] + 4 * 5
    assert stored_bytes(model) == stored + 4 * m
    kinds = {name: tensor.dtype for name, tensor in model.named_buffers()}
    assert kinds["0.U.codes"] == kinds["0.V.codes"] == torch.int8
    assert {dtype for name, dtype in kinds.items() if "codes" not in name} == {torch.float16}


def test_a_dense_layer_has_a_scale_a_row():
    model = nn.Sequential(nn.Linear(12, 20))
    W, exact = model[0].weight.detach().clone(), model(inputs()).detach()
    quantised.quantise(model, layers=["0"])
    assert torch.equal(model[0].weight, rounded(W)) and not torch.equal(rounded(W), W)
    assert 0 < distance(model(inputs()).detach(), exact) < 0.02
    assert stored_bytes(model) == 12 * 20 + 2 * 20 + 4 * 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_move_what_is_computed_and_nothing_stored(dtype):
    model = nn.Sequential(random_factors(20, 12, 5))
    quantised.quantise(model, "remap")
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.requires_grad_(False)
    x = inputs()
    exact, size = model(x), stored_bytes(model)
    model.to(dtype)
    assert model(x.to(dtype)).dtype == dtype and model[0].U.weight.dtype == model[0].weight.dtype == dtype
    assert distance(model(x.to(dtype)).float(), exact) < {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    for name, tensor in model.to("cpu").named_buffers():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert stored_bytes(model) - size == 20 * (torch.finfo(dtype).bits // 8 - 4)  # the bias alone
    model.float()
    assert torch.equal(model[0].V.weight, rounded(random_factors(20, 12, 5).V.weight.detach()))


# Whole models


def compressed(family, dtype=torch.float32, removed=0.4, layers=None):
    model = tiny(family)
    to_linear(model)
    compress(model, "svd", removed, layers=layers)
    return model.to(dtype).eval()


def packings(model):
    return [module.packing for module in model.modules() if isinstance(module, quantised.PackedLinear)]


@pytest.mark.parametrize(
    ("family", "dtype", "layout"),
    [
        *itertools.product(FAMILIES, [torch.float32], ["int8"]),
        *itertools.product(["vit", "llama"], [torch.float32], ["remap"]),
        *itertools.product(["llama"], [torch.bfloat16], quantised.LAYOUTS),
    ],
)
def test_a_folder_holds_the_counted_bytes_and_gives_the_same_bits(family, dtype, layout, tmp_path):
    model = compressed(family, dtype)
    plain, size = logits(model), stored_bytes(model)
    quantised.quantise(model, layout)
    ours = logits(model)
    assert 0 < distance(ours, plain) < 0.1 and stored_bytes(model) < size
    folder = save(model, tmp_path / "model")
    written = sum(tensor.nbytes for tensor in load_file(folder / "model.safetensors").values())
    assert 0 <= written - stored_bytes(model) <= FREQUENCIES
    again = load(folder)
    assert torch.equal(logits(again), ours) and 0 <= stored_bytes(again) - stored_bytes(model) <= FREQUENCIES
    assert str(again) == str(model) and packings(again) == packings(model) != []
    assert torch.equal(logits(load(save(again, tmp_path / "again"))), ours)


@pytest.mark.parametrize("layout", quantised.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_opens_it(layout, dtype, tmp_path):
    model = quantised.quantise(compressed("llama"), layout)
    folder = save(model, tmp_path / "model")
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    assert opened.model.layers[0].mlp.up_proj.U.weight.dtype == dtype
    for (name, ours), (theirs, found) in zip(model.named_buffers(), opened.named_buffers(), strict=True):
        if "codes" in name or "scale" in name or "rest" in name:
            assert name == theirs and found.dtype == ours.dtype and torch.equal(found, ours)
    if dtype == torch.float32:
        assert torch.equal(logits(opened), logits(model))
        opened.save_pretrained(tmp_path / "again")
        assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")), logits(model))
    else:
        assert distance(logits(opened).float(), logits(model)) < 0.03


def test_a_quantised_model_merges_into_a_dense_one(tmp_path):
    model = quantised.quantise(compressed("llama"), "remap")
    W = model.model.layers[0].mlp.up_proj.weight.detach()
    dense = transformers.AutoModelForCausalLM.from_pretrained(save(model, tmp_path / "model", merged=True))
    assert type(dense) is transformers.LlamaForCausalLM and distance(logits(dense), logits(model)) < 1e-5
    torch.testing.assert_close(dense.model.layers[0].mlp.up_proj.weight, W, rtol=1e-5, atol=1e-6)
    assert not packings(dense)


def test_split_layers_and_tied_embeddings(tmp_path):
    model = tiny("vit")
    split_qkv(model)
    layers = ["blocks.0.attn.qkv.q", "blocks.0.mlp.fc1"]
    compress(model, "svd", 0.4, layers=layers)
    quantised.quantise(model, layers=[*layers, "blocks.0.attn.qkv.k"])
    assert isinstance(model.blocks[0].attn.qkv.k, quantised.PackedLinear)
    assert torch.equal(logits(load(save(model, tmp_path / "vit"))), logits(model))
    tied = llama(tie_word_embeddings=True).eval()
    again = load(save(quantised.quantise(tied, layers=default_layers(tied)), tmp_path / "tied"))
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_what_is_truncated_before_half_goes_by_8_bits():
    for removed, first in ((0.6, 0.2), (0.5, 0), (0.4, 0), (0.55, 0.1), (0.9, 0.8), (0.999, 0.998)):
        assert quantised.hq_removed(removed) == first and isinstance(quantised.hq_removed(removed), float), removed
    with pytest.raises(ValueError, match="removed = 1"):
        quantised.hq_removed(1)


# Refusals


def test_bad_input_is_named():
    model = compressed("llama")
    refuses(
        lambda layout="int8", model=model, layers=None: quantised.quantise(model, layout, layers),
        ({"layout": "int4"}, "layout = 'int4' is not known: choose one of int8, remap"),
        ({"layers": []}, "no low-rank layer is there"),
        ({"layout": "remap", "layers": ["lm_head"]}, "layer 'lm_head' is dense: run surgery.compress first, or name"),
        ({"layout": "remap", "model": tiny("llama")}, "no low-rank layer is there"),
        ({"model": llama(tie_word_embeddings=True), "layers": ["lm_head"]}, "shares its weight"),
    )
    assert not packings(model)


def test_twice_is_refused():
    model = compressed("llama")
    first, second = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
    quantised.quantise(model, layers=[first])
    refuses(
        lambda **layers: quantised.quantise(model, **layers),
        ({"layers": [second, first]}, f"layer '{first}' is quantised already"),
        ({}, "is quantised already: name the layers that are not"),
    )
    quantised.quantise(model, "remap", layers=[second])
    assert isinstance(model.get_submodule(second).U, quantised.PackedLinear)


def test_where_one_layer_fails_none_is_changed():
    for layer, factor, value, message in (
        (1, "V", 1e8, "a vector has NaN, infinite or huge"),
        (0, "U", 1e6, "it has entries that are too large for fp16"),  # among the entries that stay fp16
    ):
        model = nn.Sequential(random_factors(20, 12, 5), random_factors(20, 20, 5))
        model[layer].get_submodule(factor).weight.data[-2, 3] = value
        with pytest.raises(ValueError, match=f"layer '{layer}.{factor}' cannot be put in 8 bits: {message}"):
            quantised.quantise(model, "remap")
        assert not packings(model)


def test_what_trains_or_measures_refuses_8_bits():
    model, batches = Toy(), toy_batches(2)
    compress(model, "svd", 0.3, layers=["query"])
    quantised.quantise(model, layers=["query", "key"])
    before = model(batches[0][0])
    with pytest.raises(ValueError, match="layer 'query' is in 8 bits, which nothing can train: rehab first"):
        rehab(model, classification_loss, batches, rank=2, steps=1, lr=1e-3)
    cuts = decompose_all(Toy(), None, "identity", ["query"])
    for recovery, verb in ((projected_gradient, "correct"), (closed_form, "refit")):
        with pytest.raises(ValueError, match=f"layer 'query' is in 8 bits, which nothing can train: {verb} first"):
            recovery(model, decompositions=cuts, stats=None, task_loss=classification_loss, batches=batches)
    with pytest.raises(ValueError, match="'key' is a PackedLinear.*it is in 8 bits, and quantising comes last"):
        compress(model, "svd", 0.5, layers=["key"])
    assert torch.equal(model(batches[0][0]), before)


def test_weights_too_small_for_any_scale_are_refused():
    model = Toy()
    with torch.no_grad():
        model.query.weight.mul_(1e-6)
    with pytest.raises(ValueError, match="'query' cannot be put in 8 bits: all its entries are below 0.0001"):
        quantised.quantise(model, layers=["query"])
