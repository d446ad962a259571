"""Learned ranks: gates on weights and on activations, their gradients, and a model that comes back as it was."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from prehab_lib.budget import rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.rivals import dobi
from prehab_lib.rivals.dobi import gated_activations, gated_weights, learned
from prehab_lib.rivals.gates import STEEPEST, Gates, Settings, learn
from prehab_lib.rivals.shared import ACCOUNTINGS, loss_at
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.tasks.perplexity import language_loss
from prehab_lib.tasks.small_llama import small_llama
from prehab_lib.weightings import decompose_all
from tests.helpers import check_slopes, killed_after
from tests.rivals.test_gates import cost, placed
from tests.stack import bits, refuses, untouched

forms = pytest.mark.parametrize("gates_on", ["weights", "activations"])


def gates_of(cuts, removed=0.5, accounting="break_even") -> Gates:
    return Gates({name: found.shape for name, found in cuts.items()}, removed, accounting)


def trained(decompositions, model, task_loss, batches, gates_on="weights", stats=None, validation=None, **settings):
    """The gates themselves after learning."""
    gates = gates_of(decompositions)
    form = partial(gated_weights, model, decompositions, gates)
    if gates_on == "activations":
        form = partial(gated_activations, model, gates)
    learn(model, gates, form, task_loss, batches, Settings(**settings))
    return gates


@pytest.mark.parametrize("ruler", ["identity", "gram"])
def test_open_gates_change_nothing_and_steep_ones_truncate(ruler, given):
    model, x = given["model"], given["batches"][0]
    cuts = decompose_all(model, given["stats"], ruler)
    gates = gates_of(cuts)
    gates.beta, dense = 1e4, model(x[0])
    with torch.no_grad():
        gates.shares.fill_(2.0)
        for form in (gated_weights(model, cuts, gates), gated_activations(model, gates)):
            with form:
                torch.testing.assert_close(model(x[0]), dense, rtol=1e-4, atol=1e-4)
        ranks = {name: 1 + place for place, name in enumerate(gates.costs)}
        with gated_weights(model, cuts, placed(gates, **ranks)):
            loss = float(classification_loss(model, x))
    assert loss == pytest.approx(loss_at(model, cuts, ranks, classification_loss, [x]), rel=1e-5)


@forms
def test_the_slope_of_the_loss_is_its_finite_difference(gates_on, given):
    """Through the gates of all layers behind: the gradient of every truncation has to be right."""
    model, x, cuts = given["model"].double(), given["batches"][0], given["decompositions"]
    batch, gates = (x[0].double(), x[1]), gates_of(cuts)
    form = gated_weights(model, cuts, gates) if gates_on == "weights" else gated_activations(model, gates)
    try:
        with form:
            (slope,) = torch.autograd.grad(classification_loss(model, batch), gates.shares)
            check_slopes(slope, gates, lambda: classification_loss(model, batch), 1e-6, rel=1e-4, abs=1e-7)
    finally:
        model.float()


def test_a_steep_gate_truncates_the_activations_batch_by_batch(given):
    """Of the layer alone: its outputs without the bias have the rank of the gate, and are the nearest such."""
    x, name = given["batches"][0][0], "blocks.0.up"
    model, layer = given["model"], given["model"].get_submodule(name)
    gates = placed(Gates({name: (40, 24)}, 0.5), **{name: 6.0})
    gates.beta = 1e4
    for tokens, rank in ((100, 6), (12, 3)):  # a quarter of its rank: of 24 values, and of 12
        with torch.no_grad():
            A = layer(x[:tokens]) - layer.bias
            with gated_activations(model, gates):
                F = layer(x[:tokens].view(2, -1, 24)) - layer.bias
            U, s, Vh = torch.linalg.svd(A, full_matrices=False)
        nearest = U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]
        torch.testing.assert_close(F.view(tokens, 40), nearest, rtol=1e-4, atol=1e-4)


def test_a_llama_with_grouped_query_attention():
    llama = small_llama(40, depth=1, width=16, heads=4, kv_heads=1).eval()
    before, cuts = bits(llama), decompose_all(llama, None, "identity")
    ids = [torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    data = dict(model=llama, task_loss=language_loss, batches=[{"input_ids": x} for x in ids])
    found = [learned(cuts, 0.4, **data, gates_on="activations", steps=4) for _ in range(2)]
    assert found[0] == found[1] and len(found[0]) == 7
    key = "model.layers.0.self_attn.k_proj"
    assert llama.get_submodule(key).weight.shape == (4, 16) and found[0][key] <= 3
    data["batches"] = [{"input_ids": ids[0], "attention_mask": torch.ones(2, 12, dtype=torch.long).tril()}]
    with pytest.raises(ValueError, match="a batch has padding"):
        learned(cuts, 0.4, **data, gates_on="activations", steps=1)
    assert untouched(llama, before)


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@forms
def test_the_loss_falls_below_that_of_uniform_ranks(gates_on, accounting, given):
    found = learned(removed=0.6, **given, gates_on=gates_on, accounting=accounting, steps=25)
    shapes = {name: cut.shape for name, cut in given["decompositions"].items() if name != "gate"}
    kept = cost({name: found[name] for name in shapes}, shapes, accounting)
    assert kept <= 0.4 * sum(map(math.prod, shapes.values()))
    uniform = {name: rank_for(shape, 0.6) for name, shape in shapes.items()}
    if accounting == "remap":
        uniform = {name: int(0.4 * min(shape)) for name, shape in shapes.items()}
    data = given["model"], given["decompositions"]
    at = [loss_at(*data, ranks, given["task_loss"], given["batches"]) for ranks in (found, uniform)]
    assert at[0] < 0.95 * at[1]


def test_the_same_seed_gives_the_same_ranks_and_it_decides_random_losses(given):
    def noisy(model, batch):
        return classification_loss(model, batch) * (1 + torch.randn(()).abs())

    noise = given | {"task_loss": noisy}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (trained(**noise, steps=6, seed=seed).gammas() for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    lazy = decompose_lazily(given["model"], given["stats"], "gram", given["decompositions"])
    assert trained(**(noise | {"decompositions": lazy}), steps=6).gammas() == first


def test_the_loss_counts_by_its_exponential(given, monkeypatch):
    """At the start the budget is met and its slope is 0, so what Adam gets is the gradient of e^loss."""
    model, cuts, batch = given["model"], given["decompositions"], given["batches"][0]
    seen = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: seen.append(self.param_groups[0]["params"][0].grad))
    learned(removed=0.5, **given, steps=1, beta=(1.0, 1.0), weight_of_budget=1e-9)
    gates = gates_of(cuts)
    with gated_weights(model.eval(), cuts, gates):
        (wanted,) = torch.autograd.grad(classification_loss(model, batch).exp(), gates.shares)
    torch.testing.assert_close(seen[0], wanted, rtol=1e-4, atol=1e-6)


def test_a_huge_loss_stays_in_numbers(given):
    """e^1000 is no number: above STEEPEST the slope of e^loss stays what it is there."""
    for loss in (60.0, 1000.0):
        huge = given | {"task_loss": lambda model, batch, loss=loss: classification_loss(model, batch) + loss}
        assert loss > STEEPEST and torch.isfinite(trained(**huge, steps=3).shares).all(), loss


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_learn_too(dtype, gates_on, given):
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 12)).to(dtype)
    batches = [(x.to(dtype), y) for x, y in given["batches"]]
    cuts, before = decompose_all(model, None, "identity"), bits(model)
    found = trained(cuts, model, classification_loss, batches, gates_on, steps=5)
    assert torch.isfinite(found.shares).all() and untouched(model, before)
    assert (found.shares != gates_of(cuts).shares).all()


# What stays as it was


@forms
@pytest.mark.parametrize("ends", ["well", "with Ctrl-C", "with NaN"])
def test_the_model_comes_back(ends, gates_on, given):
    model, before = given["model"].train(), bits(given["model"])
    model.head.weight.requires_grad_(False)
    model.gate.weight.grad = torch.ones_like(model.gate.weight)
    modules = dict(model.named_modules())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    task_loss, outcome = {
        "well": (classification_loss, nullcontext()),
        "with Ctrl-C": (killed_after(3, classification_loss), pytest.raises(KeyboardInterrupt)),
        "with NaN": (lambda model, batch: classification_loss(model, batch) * math.nan, pytest.raises(ValueError)),
    }[ends]
    try:
        with outcome:
            learned(removed=0.5, **(given | {"task_loss": task_loss}), gates_on=gates_on, steps=5)
        assert untouched(model, before) and model.training
        assert all(now is modules[name] for name, now in model.named_modules())
        assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
        assert [name for name, p in model.named_parameters() if p.grad is not None] == ["gate.weight"]
    finally:
        model.head.weight.requires_grad_(True)
        model.gate.weight.grad = None


def test_what_is_missing_is_named(given):
    refuses(
        lambda **change: learned(removed=0.5, **(given | change)),
        ({"model": None}, "allocation 'learned' needs model"),
        ({"task_loss": None}, "allocation 'learned' needs task_loss"),
        ({"batches": iter([])}, "batches many times.*not a generator"),
        ({"batches": []}, "batches ran out"),
        ({"task_loss": lambda *_: torch.tensor(math.inf)}, "task_loss is inf at step 0 of allocation 'learned'"),
        (
            {"task_loss": lambda *_: torch.tensor(1.0)},
            "task_loss of allocation 'learned' does not depend on the layers",
        ),
        ({"gates_on": "outputs"}, "gates_on = 'outputs' is not known: choose one of weights, activations"),
    )


def test_layers_that_no_rank_makes_smaller_ask_for_nothing(given, monkeypatch):
    monkeypatch.setattr(dobi, "learn", lambda *_: pytest.fail("trained"))
    only = {"gate": given["decompositions"]["gate"]}
    assert learned(removed=0.5, **(given | {"decompositions": only})) == {"gate": None}
