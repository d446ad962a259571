"""The 8-bit grid, the layer that computes with what lies on it, and which vectors go there when the loss decides."""

import copy

import pytest
import torch
import transformers
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.rivals.packing import PackedLinear, Packing, absmax_scales, from_bits, rounded, to_bits, to_codes
from prehab_lib.rivals.quantised import factor_names, file_bytes, quantise, quantise_by_loss, stored_bytes
from prehab_lib.stats import collect
from prehab_lib.surgery import compress, load, save
from tests.families import IDS, distance, logits, tiny
from tests.helpers import Toy, random_factors, toy_batches
from tests.stack import refuses

few_tokens = pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")


def vectors(k=9, d=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(k, d, dtype=torch.float64, generator=generator) * torch.logspace(-9, 5, k).double()[:, None]


def inputs(n=12):
    return torch.randn(3, n, generator=torch.Generator().manual_seed(1))


def test_no_entry_moves_by_more_than_half_a_step():
    F = vectors()
    scale, codes, largest = absmax_scales(F), to_codes(F, absmax_scales(F)), F.abs().amax(1)
    assert scale.dtype == torch.float16 and codes.dtype == torch.int8
    assert ((rounded(F).double() - F).abs() <= scale.double()[:, None] / 2).all()
    assert (codes.abs() <= 127).all() and (scale.double() >= largest / 127).all()
    normal = largest > 127 * 6.2e-5  # fp16 has its full precision there
    assert (scale.double()[normal] <= largest[normal] / 127 * 1.001).all()
    assert (codes.abs().amax(1)[normal] >= 126).all()  # all levels are in use


def test_zero_vectors_stay_zero_and_what_fp16_cannot_say_is_refused():
    F = vectors(3)
    F[1] = 0
    assert torch.equal(rounded(F)[1], torch.zeros(40)) and absmax_scales(F)[1] == 0
    for bad in (float("nan"), float("inf"), 1e8):
        F[2, 5] = bad
        with pytest.raises(ValueError, match="NaN, infinite or huge entries: no fp16 scale fits it"):
            rounded(F)


def test_bits_come_back():
    for count in (1, 7, 8, 9, 30):
        mask = torch.randint(2, (count,), generator=torch.Generator().manual_seed(count)).bool()
        bits = to_bits(mask)
        assert bits.dtype == torch.uint8 and len(bits) == -(-count // 8), count
        assert torch.equal(from_bits(bits, count), mask), count


# The layers


@pytest.mark.parametrize("layout", ["int8", "remap"])
@pytest.mark.parametrize(("m", "n"), [(20, 12), (12, 20), (16, 16)])
def test_a_low_rank_layer_computes_with_its_rounded_factors(layout, m, n):
    model = nn.Sequential(random_factors(m, n, 5))
    U, V, bias = model[0].U.weight.detach().clone(), model[0].V.weight.detach().clone(), model[0].U.bias
    assert quantise(model, layout) is model
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
    quantise(model)
    assert torch.equal(model[0].weight, rounded(W)) and not torch.equal(rounded(W), W)
    assert 0 < distance(model(inputs()).detach(), exact) < 0.02
    assert stored_bytes(model) == 12 * 20 + 2 * 20 + 4 * 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_move_what_is_computed_and_nothing_stored(dtype):
    model = nn.Sequential(random_factors(20, 12, 5))
    quantise(model, "remap")
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


def test_a_description_of_nothing_is_refused():
    wrong = dict(axis="diagonal"), dict(axis="rows", dtype="float33"), dict(axis="rows", dtype="nn")
    message = "describes no packed matrix"
    refuses(lambda **change: Packing(vectors=3, entries=4, **change), *((change, message) for change in wrong))


# By loss


def toy():
    model, batches = Toy(n=12, m=16), toy_batches(2)
    compress(model, "svd", 0.3, layers=["query", "key"])
    return model, collect(model, batches, factor_names(model), {"grad"}, classification_loss), batches


def floats(model, names):
    """(bytes of the factors with no vector in 8 bits, bits included; with all)."""
    whole = least = 0
    for name in names:
        k, d = model.get_submodule(name).weight.shape
        if name.endswith("U"):
            k, d = d, k
        whole, least = whole + 2 * k * d + -(-k // 8), least + k * (d + 2) + -(-k // 8)
    return whole, least


@few_tokens
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_vectors_that_cost_least_go_first_until_the_budget_holds(share):
    model, stats, _ = toy()
    whole, least = floats(model, stats)
    budget = round(whole - share * (whole - least))
    before, plain = {name: model.get_submodule(name).weight.detach().clone() for name in stats}, copy.deepcopy(model)
    biases = sum(4 * model.get_submodule(name).out_features for name in stats if name.endswith("U"))
    quantise_by_loss(model, stats, budget)
    used = sum(stored_bytes(model.get_submodule(name)) for name in stats) - biases
    largest = max(max(W.shape) for W in before.values())
    assert budget - largest < used <= budget
    moved, spared = [], []
    for name, W in before.items():
        columns = name.endswith("U")
        F, G, now = (M.T if columns else M for M in (W, stats[name].grad, model.get_submodule(name).weight))
        chosen = from_bits(model.get_submodule(name).mask, len(F))
        for f, g, after, on_grid in zip(F, G, now, chosen, strict=True):
            Q = rounded(f[None])[0]
            (moved if on_grid else spared).append(abs(float(g @ (Q - f).double())))
            assert torch.equal(after, Q if on_grid else f.half().float())
    assert max(moved, default=0) <= min(spared, default=1e9)
    assert (share == 0) == (not moved) and (share == 1) == (not spared)
    assert 0 < distance(model(torch.ones(3, 12)).detach(), plain(torch.ones(3, 12)).detach()) < 0.1


@few_tokens
def test_a_predicted_change_is_the_change_of_the_loss():
    """Σ ⟨γ, Q(f) − f⟩ over what moved, against the loss itself, to second order: on a step scaled down a thousand times."""
    model, stats, batches = toy()
    batches = [(x.double(), y) for x, y in batches]
    predicted, step = 0.0, 1e-3
    before = [classification_loss(model.double(), batch) for batch in batches]
    with torch.no_grad():
        for name, statistics in stats.items():
            W = model.get_submodule(name).weight
            Q = rounded(W.T).T if name.endswith("U") else rounded(W)
            predicted += float((statistics.grad * (Q.double() - W)).sum())
            W += step * (Q.double() - W)
    after = [classification_loss(model, batch) for batch in batches]
    assert float((sum(after) - sum(before)).detach()) / 2 / step == pytest.approx(predicted, rel=1e-2)


@few_tokens
def test_a_mixed_packing_comes_back_from_disk(tmp_path):
    model = tiny("llama")
    compress(model, "svd", 0.4)
    stats = collect(model, [{"input_ids": IDS, "labels": IDS}], factor_names(model), {"grad"}, lambda m, b: m(**b).loss)
    budget = sum(floats(model, stats)) // 2
    quantise_by_loss(model, stats, budget)
    folder = save(model, tmp_path / "model")
    assert torch.equal(logits(load(folder)), logits(model)) and file_bytes(folder)[0] == stored_bytes(model)
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(folder)), logits(model))
    assert sum(stored_bytes(model.get_submodule(name)) for name in stats) <= budget


@few_tokens
def test_a_budget_that_cannot_be_met_names_the_least():
    model, stats, _ = toy()
    _, least = floats(model, stats)
    bare = stats | {"query.U": copy.copy(stats["query.U"])}
    bare["query.U"].grad = None
    refuses(
        lambda budget, stats=stats: quantise_by_loss(model, stats, budget),
        ({"budget": least - 1}, f"budget = {least - 1}: with all these vectors in 8 bits {least} bytes remain"),
        ({"budget": least, "stats": bare}, "layer 'query.U' needs the statistic 'grad'"),
        ({"budget": 0}, "budget = 0"),
        also=lambda: not any(isinstance(module, PackedLinear) for module in model.modules()),
    )
