"""Compression in stages: what a stage sees, towards what it corrects, and what stays as it was."""

import copy

import pytest
import torch
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import METHODS, Method
from prehab_lib.rivals.correction import compress_in_stages
from prehab_lib.rivals.trial import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from tests.helpers import killed_after
from tests.stack import bits, stack_batches, untouched
from tests.stack import trained as train

BASE = train()
LAYERS = [f"blocks.{i}.{part}" for i in range(3) for part in ("up", "down")] + ["head"]


def trained():
    return copy.deepcopy(BASE)


def cutter(method="svd_llm", batches=None):
    """What a stage does: statistics of the model as it is, and surgery by them."""
    batches = batches or stack_batches()
    chosen = method if isinstance(method, Method) else METHODS[method]

    def cut(model):
        data = dict(layers=LAYERS, task_loss=classification_loss)
        stats = collect(model, batches, needs=chosen.needs, **data) if chosen.needs else None
        return compress(model, chosen, 0.6, stats, batches=batches, **data)

    return cut


def staged(method="svd_llm", model=None, batches=None, loss=classification_loss, **more):
    model, batches = trained() if model is None else model, batches or stack_batches()
    report = compress_in_stages(model, cutter(method, batches), loss, batches, layers=LAYERS, **more)
    return model, report


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", ["svd", "asvd", "svd_llm_update"])
def test_one_stage_is_the_cut(method):
    ours, report = staged(method, stages=1)
    theirs = trained()
    assert report == cutter(method)(theirs) and same(ours, theirs)


def test_two_stages_by_hand():
    """Cut; densify; one gradient for all; project; whiten and decompose the corrected model; cut it again."""
    ours, report = staged()
    dense, batches, model = trained(), stack_batches(), trained()
    cutter()(model)
    for name in LAYERS:
        low, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
        linear = nn.Linear(low.in_features, low.out_features)
        linear.weight.data, linear.bias.data = low.weight.detach().clone(), low.bias.detach().clone()
        setattr(parent, name.rpartition(".")[2], linear)
    for batch in batches:
        (classification_loss(model, batch) / len(batches)).backward()
    for name in LAYERS:
        layer, W = model.get_submodule(name), dense.get_submodule(name).weight.detach()
        g, lost = layer.weight.grad, W - layer.weight.detach()
        layer.weight.data += (g * lost).sum() / (g * g).sum() * g
    cutter()(model)
    x = batches[0][0]
    torch.testing.assert_close(ours(x), model(x), rtol=1e-3, atol=1e-3)
    plain = trained()
    cutter()(plain)
    assert (plain(x) - model(x)).norm() > 20 * (ours(x) - model(x)).norm()
    assert list(report.ranks) == LAYERS


@pytest.mark.parametrize("method", ["svd_llm", "zs_svd"])
def test_stages_count_against_the_original_sizes_and_lower_the_loss(method):
    batches, losses = stack_batches(), []
    for number in (1, 3):
        model, report = staged(method, stages=number)
        weights = {name: model.get_submodule(name) for name in LAYERS}
        stored = sum(
            low.U.weight.numel() + low.V.weight.numel() if isinstance(low, LowRankLinear) else low.weight.numel()
            for low in weights.values()
        )
        total = sum(module.in_features * module.out_features for module in weights.values())
        assert report.achieved == pytest.approx(1 - stored / total) and report.achieved >= 0.6
        assert report.ranks == {name: getattr(module, "rank", None) for name, module in weights.items()}
        losses.append(loss_at(model, {}, {}, classification_loss, batches))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("calls", [0, 3, 6])
def test_a_kill_in_any_stage_leaves_the_very_same_layers(calls):
    model = trained()
    before, modules = bits(model), dict(model.named_modules())
    loss = killed_after(calls, classification_loss)  # a correction makes four calls
    with pytest.raises(KeyboardInterrupt):
        staged(model=model, stages=3, loss=loss)
    assert untouched(model, before) and dict(model.named_modules()) == modules
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_bad_input_is_named_and_changes_nothing():
    model = trained()
    before = bits(model)
    for change, message in (
        ({"method": Method("gram", "evenly")}, "allocation = 'evenly' is not known"),
        ({"stages": 0}, "stages = 0"),
        ({"batches": iter([1])}, "compress_in_stages goes over batches many times"),
        ({"loss": None}, "compress_in_stages needs task_loss"),
    ):
        with pytest.raises(ValueError, match=message):
            staged(model=model, **change)
        assert untouched(model, before)
    compress(model, "svd", 0.4, layers=LAYERS)
    with pytest.raises(ValueError, match="compressed already"):
        staged(model=model)
