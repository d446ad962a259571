"""Contract of every method: whoever adds one to `METHODS` inherits these tests."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from prehab_lib.budget import check_removed
from prehab_lib.evaluate import classification_loss
from prehab_lib.methods import METHODS, Method
from prehab_lib.stats import KNOWN, LayerStats, collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import Toy, toy_batches
from tests.stack import refuses

LAYERS = ("query", "key", "out")


@pytest.fixture
def toy():
    model, batches = Toy(n=24, m=32, classes=20), toy_batches(n=24, classes=20, count=12)
    return model, batches, collect(model, batches, needs=KNOWN, task_loss=classification_loss, iterations=2)


@pytest.mark.parametrize("method", METHODS)
def test_biases_modes_and_flags_are_untouched(method, toy):
    model = toy[0].train()
    model.key.weight.requires_grad_(False)
    biases = {name: model.get_submodule(name).bias.clone() for name in LAYERS}
    compress(model, method, 0.4, toy[2], task_loss=classification_loss, batches=toy[1])
    assert all(torch.equal(model.get_submodule(name).bias, biases[name]) for name in LAYERS)
    assert model.query.training
    for name in LAYERS:  # asvd may leave one dense
        weights = [p for part, p in model.get_submodule(name).named_parameters() if part.endswith("weight")]
        assert weights and all(p.requires_grad == (name != "key") for p in weights)


def test_whitening_loses_less_of_the_output_than_plain_svd(toy):
    x = torch.cat([b[0] for b in toy[1]]) * torch.logspace(0, 2, 24)
    batches = [{"x": part} for part in x.split(32)]
    stats, loss = collect(toy[0], batches), {}
    for method in ("svd", "svd_llm"):
        model = copy.deepcopy(toy[0])
        compress(model, method, 0.6, stats, layers=["query"])
        loss[method] = float((model.query(x) - toy[0].query(x)).detach().square().sum())
    assert loss["svd_llm"] < 0.9 * loss["svd"]


def test_a_recovery_that_fails_leaves_the_model_as_it_was(toy):
    model, before = toy[0], dict(toy[0].named_modules())
    breaks = [*toy[1][:2], (torch.full((4, 24), float("nan")), torch.zeros(4))]
    cases = ({"batches": None}, "needs batches"), ({"batches": breaks}, "NaN")
    call = partial(compress, model, "svd_llm_update", 0.4, toy[2])
    refuses(call, *cases, also=lambda: dict(model.named_modules()) == before)


def test_options_of_a_method_reach_its_allocation(toy):
    spared = replace(METHODS["asvd"], options={"losses": {name: {5: 0.0, 1: float("inf")} for name in LAYERS}})
    assert compress(toy[0], spared, 0.6, toy[2]).ranks == {"query": 5, "key": 5, "out": 5}


def test_half_precision_keeps_its_dtype_and_refuses_overflow(toy):
    model = toy[0].to(torch.bfloat16)
    compress(model, "svd", 0.4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    huge = nn.Sequential(nn.Linear(8, 8)).half()
    with torch.no_grad():
        huge[0].weight.fill_(60000)
    report = compress(huge, "svd", 0.4)
    assert torch.isfinite(huge[0].U.weight).all() and report.achieved >= 0.4


def test_a_frozen_bias_stays_frozen_and_a_recovery_must_be_known(toy):
    toy[0].key.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="recovery = 'nope' is not known"):
        compress(toy[0], Method("identity", recovery="nope"), 0.4)
    compress(toy[0], "svd", 0.4)
    assert not toy[0].key.bias.requires_grad and toy[0].key.U.weight.requires_grad
    with pytest.raises(ValueError, match="compressed already"):
        compress(toy[0], "svd", 0.4, layers=["query"])


def test_a_recovery_touches_the_layers_of_its_own_call_alone(toy):
    model, batches = toy[0], toy[1]
    cuts = decompose_all(model, toy[2])
    compress(model, "svd_llm", 0.4, toy[2], layers=["query", "key"], decompositions=cuts)
    before = model.query.U.weight.clone()
    compress(model, "svd_llm_update", 0.4, toy[2], layers=["out"], decompositions=cuts, batches=batches)
    assert torch.equal(model.query.U.weight, before)


def test_weights_that_moved_a_little_are_other_weights(toy):
    cuts = decompose_all(toy[0], toy[2])
    with torch.no_grad():
        toy[0].key.weight.mul_(1 + 1e-4)
    with pytest.raises(ValueError, match="decomposition of layer 'key' is of other weights"):
        compress(toy[0], "svd_llm", 0.4, toy[2], decompositions=cuts)


def test_thin_layers_stay_dense_and_the_rank_one_floor_is_reported():
    model = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 6), nn.Linear(6, 6))
    report = compress(model, "svd", 0.9)
    assert report.kept_dense == ["0", "1"] and type(model[0]) is nn.Linear
    assert report.at_floor == ["2"] and report.achieved < check_removed(0.9)
    assert "dense: 0, 1; rank 1 exceeds the budget of: 2" in str(report)


def test_bad_input_is_named_before_any_work_and_changes_nothing(toy, monkeypatch):
    monkeypatch.setattr("prehab_lib.weightings.decompose", lambda *_, **__: pytest.fail("work was done"))
    call = partial(compress, toy[0])
    usual = {"method": "svd_llm", "removed": 0.4, "stats": toy[2]}
    for change, message in (
        ({"method": "svdllm"}, "method = 'svdllm' is not known"),
        *(({"removed": removed}, f"removed = {removed!r}:") for removed in (0, 1, -0.1, "40")),
        ({"stats": None}, "method 'svd_llm' for layer 'query' needs the statistic 'gram'"),
        ({"stats": {"query": LayerStats()}}, "needs the statistic 'gram'"),
        ({"layers": ["nope"]}, "no module named 'nope'"),
        ({"method": Method("identity", "evenly")}, "allocation = 'evenly' is not known"),
        ({"method": "asvd"}, "task_loss"),
        ({"method": "swift_svd"}, "task_loss"),
        ({"method": "svd_llm_update"}, "batches"),
    ):
        refuses(call, (usual | change, message))
    monkeypatch.undo()
    refuses(call, (usual | {"method": Method("gramm")}, "weighting = 'gramm' is not known"))
    assert all(type(toy[0].get_submodule(name)) is nn.Linear for name in LAYERS)
