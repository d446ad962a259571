"""Which vectors go in 8 bits when the loss decides, and the budget of bytes that it keeps to."""

import copy

import pytest
import torch
import transformers

from prehab_lib.evaluate import classification_loss
from prehab_lib.rivals.packing import PackedLinear, from_bits, rounded
from prehab_lib.rivals.quantised import factor_names, file_bytes, quantise_by_loss, stored_bytes
from prehab_lib.stats import collect
from prehab_lib.surgery import compress, load, save
from tests.families import IDS, distance, logits, tiny
from tests.helpers import Toy, toy_batches


def toy(rank_removed=0.3):
    model, batches = Toy(n=12, m=16), toy_batches(2)
    compress(model, "svd", rank_removed, layers=["query", "key"])
    names = factor_names(model)
    return model, collect(model, batches, names, {"grad"}, classification_loss), batches


def floats(model, names):
    """(bytes of the factors with no vector in 8 bits, bits included; with all)."""
    whole = least = 0
    for name in names:
        part = model.get_submodule(name)
        k, d = (part.in_features, part.out_features) if name.endswith("U") else (part.out_features, part.in_features)
        whole, least = whole + 2 * k * d + -(-k // 8), least + k * (d + 2) + -(-k // 8)
    return whole, least


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_vectors_that_cost_least_go_first_until_the_budget_holds(share, tmp_path):
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
            change = abs(float(g @ (rounded(f[None])[0] - f).double()))
            (moved if on_grid else spared).append(change)
            assert torch.equal(after, rounded(f[None])[0] if on_grid else f.half().float())
    assert max(moved, default=0) <= min(spared, default=1e9)
    assert (share == 0) == (not moved) and (share == 1) == (not spared)
    assert 0 < distance(model(torch.ones(3, 12)).detach(), plain(torch.ones(3, 12)).detach()) < 0.1


def test_a_predicted_change_is_the_change_of_the_loss():
    """Σ ⟨γ, Q(f) − f⟩ over what moved, against the loss itself, to second order: on a step scaled down a thousand times."""
    model, stats, batches = toy()
    predicted, step = 0.0, 1e-3
    before = [classification_loss(model.double(), (x.double(), y)) for x, y in batches]
    with torch.no_grad():
        for name, found in stats.items():
            W = model.get_submodule(name).weight
            Q = rounded(W.T).T if name.endswith("U") else rounded(W)
            predicted += float((found.grad * (Q.double() - W)).sum())
            W += step * (Q.double() - W)
    after = [classification_loss(model, (x.double(), y)) for x, y in batches]
    assert float((sum(after) - sum(before)).detach()) / 2 / step == pytest.approx(predicted, rel=1e-2)


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_a_mixed_packing_comes_back_from_disk(tmp_path):
    model = tiny("llama")
    compress(model, "svd", 0.4)
    stats = collect(model, [{"input_ids": IDS, "labels": IDS}], factor_names(model), {"grad"}, lambda m, b: m(**b).loss)
    whole, least = floats(model, stats)
    quantise_by_loss(model, stats, (whole + least) // 2)
    folder = save(model, tmp_path / "model")
    assert torch.equal(logits(load(folder)), logits(model)) and file_bytes(folder)[0] == stored_bytes(model)
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(folder)), logits(model))
    assert sum(stored_bytes(model.get_submodule(name)) for name in stats) <= (whole + least) // 2


@pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")
def test_a_budget_that_cannot_be_met_names_the_least():
    model, stats, _ = toy()
    _, least = floats(model, stats)
    with pytest.raises(
        ValueError, match=f"budget = {least - 1}: with all these vectors in 8 bits {least} bytes remain"
    ):
        quantise_by_loss(model, stats, least - 1)
    stats["query.U"].grad = None
    with pytest.raises(ValueError, match="layer 'query.U' needs the statistic 'grad'"):
        quantise_by_loss(model, stats, least)
    with pytest.raises(ValueError, match="budget = 0"):
        quantise_by_loss(model, stats, 0)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
