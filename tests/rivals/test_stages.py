import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from prehab_lib.allocation import ALLOCATIONS
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import METHODS, RECOVERIES, Method
from prehab_lib.rivals import stages
from prehab_lib.rivals.stages import compress_in_stages
from prehab_lib.rivals.trial import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from tests.helpers import killed_after
from tests.stack import bits, stack_batches, untouched
from tests.stack import trained as train

GRAM = METHODS["svd_llm"]
BASE = train()
LAYERS = [f"blocks.{i}.{part}" for i in range(3) for part in ("up", "down")] + ["head"]


def trained():
    return copy.deepcopy(BASE)


def staged(method=GRAM, removed=0.6, model=None, batches=None, loss=classification_loss, **more):
    model = trained() if model is None else model
    return model, compress_in_stages(model, method, removed, batches or stack_batches(), loss, layers=LAYERS, **more)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("method", ["svd", "svd_llm", "asvd", "svd_llm_update"])
def test_one_stage_is_compress(method):
    ours, report = staged(method, stages=1)
    theirs, batches = trained(), stack_batches()
    stats = collect(theirs, batches, LAYERS, needs=METHODS[method].needs) if METHODS[method].needs else None
    given = dict(layers=LAYERS, task_loss=classification_loss, batches=batches)
    assert report == compress(theirs, method, 0.6, stats, **given)
    assert same(ours, theirs)


def test_two_stages_by_hand():
    """Cut; densify; one gradient for all; project; whiten and decompose the corrected model; cut it again."""
    ours, report = staged()
    dense, batches, model = trained(), stack_batches(), trained()
    compress(model, "svd_llm", 0.6, collect(model, batches, LAYERS), layers=LAYERS)
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
    compress(model, "svd_llm", 0.6, collect(model, batches, LAYERS), layers=LAYERS)
    x = batches[0][0]
    torch.testing.assert_close(ours(x), model(x), rtol=1e-3, atol=1e-3)
    plain = trained()
    compress(plain, "svd_llm", 0.6, collect(plain, batches, LAYERS), layers=LAYERS)
    assert (plain(x) - model(x)).norm() > 20 * (ours(x) - model(x)).norm()
    assert list(report.ranks) == LAYERS


@pytest.mark.parametrize("method", ["svd_llm", "swift_svd", "zs_svd"])
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


def test_every_stage_looks_at_the_model_as_it_is_and_corrects_towards_the_original(monkeypatch):
    seen, lost = [], []
    real_collect, real_step = stages.collect, stages.restoring_step

    def watched(model, *args, **more):
        assert all(type(model.get_submodule(name)) is nn.Linear for name in LAYERS)
        seen.append(model.get_submodule("head").weight.detach().clone())
        return real_collect(model, *args, **more)

    def step(missing, gradients):
        lost.append(missing.clone())
        return real_step(missing, gradients)

    monkeypatch.setattr(stages, "collect", watched)
    monkeypatch.setattr(stages, "restoring_step", step)
    dense, _ = trained(), staged(stages=3)
    assert len(seen) == 3 and len(lost) == 2 * len(LAYERS)
    assert torch.equal(seen[0], dense.head.weight) and not any(torch.equal(a, b) for a, b in pairwise(seen))
    for stage in range(2):  # the layer before its step, and what it lacks, make the original weight
        before = dense.head.weight.double() - lost[(stage + 1) * len(LAYERS) - 1]
        assert int(torch.linalg.matrix_rank(before, rtol=1e-5)) == 3
    assert int(torch.linalg.matrix_rank(seen[1])) > 3


def test_layers_left_dense_have_their_own_weights_in_every_stage(monkeypatch):
    def spare_the_head(decompositions, removed, **_):
        return {name: None if name == "head" else 4 for name in decompositions}

    monkeypatch.setitem(ALLOCATIONS, "spare the head", spare_the_head)
    model, report = staged(replace(GRAM, allocation="spare the head"), stages=3)
    assert report.kept_dense == ["head"] and torch.equal(model.head.weight, trained().head.weight)


def test_each_correction_takes_its_own_batches_and_as_many_groups_as_asked():
    fresh = [stack_batches(count=2, seed=seed) for seed in (1, 2)]
    one, _ = staged(stages=3, correction_batches=fresh)
    other, _ = staged(stages=3, correction_batches=fresh[::-1])
    assert not same(one, other)
    again, _ = staged(stages=3, correction_batches=[stack_batches()] * 2)
    assert same(again, staged(stages=3)[0]) and not same(again, one)
    assert not same(staged(gradients=2)[0], staged()[0])


def test_a_recovery_runs_once_after_the_last_stage(monkeypatch):
    calls = []
    monkeypatch.setitem(RECOVERIES, "closed_form", lambda model, **given: calls.append(given["weighting"]))
    ours, _ = staged("svd_llm_update", stages=3)
    assert calls == ["gram"] and same(ours, staged(stages=3)[0])


def test_flags_modes_and_dtype_stay():
    model = trained().to(torch.bfloat16).train()
    model.head.weight.requires_grad_(False)
    model.blocks[0].up.bias.requires_grad_(False)
    biases = {name: model.get_submodule(name).bias.clone() for name in LAYERS}
    batches = [(x.bfloat16(), y) for x, y in stack_batches()]
    staged(model=model, batches=batches)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(model.get_submodule(name).bias, biases[name]) for name in LAYERS)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"head.U.weight", "head.V.weight", "blocks.0.up.U.bias"}


@pytest.mark.parametrize("calls", [0, 3, 6])
def test_a_kill_in_any_stage_leaves_the_very_same_layers(calls):
    model = trained()
    before, modules = bits(model), dict(model.named_modules())
    loss = killed_after(calls, classification_loss)  # a correction makes four calls
    with pytest.raises(KeyboardInterrupt):
        staged(model=model, stages=3, loss=loss)
    assert untouched(model, before) and dict(model.named_modules()) == modules
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "zs"}, "method = 'zs' is not known"),
        ({"method": Method("gram", "evenly")}, "allocation = 'evenly' is not known"),
        ({"method": Method("gram", recovery="nope")}, "recovery = 'nope' is not known"),
        ({"removed": 1.5}, "removed = 1.5"),
        ({"stages": 0}, "stages = 0"),
        ({"gradients": 0}, "gradients = 0"),
        ({"batches": iter([1])}, "compress_in_stages goes over batches many times"),
        ({"loss": None}, "compress_in_stages needs task_loss"),
        ({"stages": 3, "correction_batches": [[]]}, "correction_batches has 1 entries: .* each of 2 corrections"),
        ({"gradients": 5}, "gradients = 5 needs as many batches, and there are 4"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(change, message):
    model = trained()
    before = bits(model)
    with pytest.raises(ValueError, match=message):
        staged(model=model, **change)
    assert untouched(model, before)


def test_a_compressed_model_is_refused():
    model = trained()
    compress(model, "svd", 0.4, layers=LAYERS)
    with pytest.raises(ValueError, match="compressed already"):
        staged(model=model)
    assert isinstance(model.head, LowRankLinear)
