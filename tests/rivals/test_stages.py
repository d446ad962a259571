"""Compression in stages: what a stage sees, towards what it corrects, and what stays as it was."""

import copy

import pytest
import torch

from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import METHODS, Method
from prehab_lib.rivals.correction import compress_in_stages
from prehab_lib.rivals.shared import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from tests.helpers import killed_after
from tests.rivals.test_correction import BASE, densified
from tests.stack import bits, refuses, same, stack_batches, untouched

LAYERS = [f"blocks.{i}.{part}" for i in range(3) for part in ("up", "down")] + ["head"]


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
    model, batches = model or copy.deepcopy(BASE), batches or stack_batches()
    report = compress_in_stages(model, cutter(method, batches), loss, batches, layers=LAYERS, **more)
    return model, report


@pytest.mark.parametrize("method", ["svd", "asvd", "svd_llm_update"])
def test_one_stage_is_the_cut(method):
    ours, report = staged(method, stages=1)
    theirs = copy.deepcopy(BASE)
    assert report == cutter(method)(theirs) and same(ours, theirs)


def test_two_stages_by_hand():
    """Cut; densify; one gradient for all; project; whiten and decompose the corrected model; cut it again."""
    ours, report = staged()
    batches, model = stack_batches(), copy.deepcopy(BASE)
    cutter()(model)
    model = densified(model)
    for batch in batches:
        (classification_loss(model, batch) / len(batches)).backward()
    for name in LAYERS:
        layer, W = model.get_submodule(name), BASE.get_submodule(name).weight.detach()
        g, lost = layer.weight.grad, W - layer.weight.detach()
        layer.weight.data += (g * lost).sum() / (g * g).sum() * g
    cutter()(model)
    x = batches[0][0]
    torch.testing.assert_close(ours(x), model(x), rtol=1e-3, atol=1e-3)
    plain = copy.deepcopy(BASE)
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


def test_a_kill_in_any_stage_leaves_the_very_same_layers():
    model = copy.deepcopy(BASE)
    before, modules = bits(model), dict(model.named_modules())
    for calls in (0, 3, 6):  # a correction makes four
        with pytest.raises(KeyboardInterrupt):
            staged(model=model, stages=3, loss=killed_after(calls, classification_loss))
        assert untouched(model, before) and dict(model.named_modules()) == modules, calls
        assert all(p.grad is None and p.requires_grad for p in model.parameters()), calls


def test_bad_input_is_named_and_changes_nothing():
    model = copy.deepcopy(BASE)
    before = bits(model)
    refuses(
        lambda **change: staged(model=model, **change),
        ({"method": Method("gram", "evenly")}, "allocation = 'evenly' is not known"),
        ({"stages": 0}, "stages = 0"),
        ({"batches": iter([1])}, "compress_in_stages goes over batches many times"),
        ({"loss": None}, "compress_in_stages needs task_loss"),
        also=lambda: untouched(model, before),
    )
    compress(model, "svd", 0.4, layers=LAYERS)
    with pytest.raises(ValueError, match="compressed already"):
        staged(model=model)
