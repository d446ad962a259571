"""The projected-gradient correction: its step, its gradient, the recovery by hand, and what can go wrong."""

import copy

import pytest
import torch
from torch import nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import METHODS, Method
from prehab_lib.rivals import correction
from prehab_lib.rivals.shared import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import killed_after, layer
from tests.stack import bits, changed, refuses, same, stack_batches, trained, untouched

BASE = trained()


def matrices(*shape, seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(count)]


def inner(a, b):
    return float((a * b).sum())


def densified(model):
    dense = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            parent, _, child = name.rpartition(".")
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data, linear.bias = module.weight.detach().clone(), copy.deepcopy(module.bias)
            setattr(dense.get_submodule(parent), child, linear)
    return dense


# The step


def test_one_gradient_changes_the_loss_as_restoring_what_was_lost_would():
    for seed in range(20):
        lost, g = matrices(7, 5, seed=seed, count=2)
        g = g * 10.0 ** (seed - 10)
        step = correction.restoring_step(lost, g)
        assert inner(g, step) == pytest.approx(inner(g, lost), rel=1e-10), seed
        assert step.norm() <= lost.norm() and float((step - inner(g, lost) / inner(g, g) * g).norm()) < 1e-12, seed
    torch.testing.assert_close(correction.restoring_step(3.0 * g, g), 3.0 * g, rtol=1e-12, atol=0)


def test_no_gradient_no_step_and_the_rank_grows_by_that_of_the_gradient_at_most():
    (lost,) = matrices(7, 5)
    assert torch.equal(correction.restoring_step(lost, torch.zeros(7, 5)), torch.zeros(7, 5, dtype=torch.float64))
    W, _, _ = layer(14, 10, 300)
    left, right = matrices(14, 2)[0], matrices(2, 10, seed=1)[0]
    U = torch.linalg.svd(W)[0][:, :3]
    kept = U @ U.T @ W
    assert int(torch.linalg.matrix_rank(kept + correction.restoring_step(W - kept, left @ right))) == 3 + 2


# The recovery


def recover(model, decompositions, stats, batches, **more):
    given = dict(stats=stats, weighting="gram", task_loss=classification_loss, batches=batches)
    correction.projected_gradient(model, decompositions=decompositions, **given | more)


def stack(removed=0.6, ruler="gram"):
    model, batches = copy.deepcopy(BASE), stack_batches()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    stats = collect(model, batches, names)
    decompositions = decompose_all(model, stats, ruler)
    compress(model, Method(ruler), removed, stats, decompositions=decompositions)
    return model, decompositions, stats, batches


@pytest.mark.parametrize("ruler", ["gram", "identity"])
def test_factors_are_the_truncation_of_what_was_kept_and_the_step(ruler):
    """By hand: densify, autograd at one set of weights, project, factorise under the ruler again, truncate."""
    model, decompositions, stats, batches = stack(ruler=ruler)
    ranks = {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    twin = densified(model)
    for batch in batches:
        (classification_loss(twin, batch) / len(batches)).backward()
    kept = {name: correction.product(model.get_submodule(name)) for name in ranks}
    before = bits(model)
    recover(model, decompositions, stats, batches, weighting=ruler)
    for name, rank in ranks.items():
        g = twin.get_submodule(name).weight.grad.double()
        lost = BASE.get_submodule(name).weight.detach().double() - kept[name]
        whole = kept[name] + inner(g, lost) / inner(g, g) * g
        Q = stats[name].gram_root() if ruler == "gram" else torch.eye(whole.shape[1], dtype=torch.float64)
        U = torch.linalg.svd(whole @ Q)[0][:, :rank]
        expected = (U @ U.T @ whole).float()
        module = model.get_submodule(name)
        assert module.rank == rank == module.U.weight.shape[1] and torch.linalg.matrix_rank(module.weight) == rank
        torch.testing.assert_close(module.weight, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    assert changed(model, before) == {f"{name}.{factor}.weight" for name in ranks for factor in "UV"}


def test_a_zero_gradient_changes_no_bit_and_flags_and_modes_are_as_before():
    model, decompositions, stats, batches = stack()
    before, modules = bits(model), dict(model.named_modules())
    recover(model, decompositions, stats, batches, task_loss=lambda model, batch: 0.0 * model(batch[0]).sum())
    assert untouched(model, before)
    model.train().requires_grad_(False)
    model.head.eval()
    recover(model, decompositions, stats, batches)
    assert changed(model, before) and not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert dict(model.named_modules()) == modules and model.training and not model.head.training


def test_a_failure_gives_every_factor_back():
    model, decompositions, stats, batches = stack()
    before, modules = bits(model), dict(model.named_modules())
    head = decompositions["head"]  # the last layer fails after the others have been computed
    nan = Decomposition(*(torch.full_like(part, float("nan")) for part in (head.left, head.right, head.sigma)))
    good = dict(decompositions=decompositions, stats=stats, batches=batches)
    refuses(
        lambda **change: recover(model, **good | change),
        ({"batches": [*batches[:2], (torch.full((4, 24), float("nan")), torch.zeros(4).long())]}, "task_loss is nan"),
        ({"decompositions": decompositions | {"head": nan}}, "NaN"),
        ({"stats": None}, "needs the statistic 'gram'"),
        ({"weighting": "gramm"}, "weighting = 'gramm' is not known"),
        also=lambda: untouched(model, before) and dict(model.named_modules()) == modules,
    )


# Stages


STAGED = [f"blocks.{i}.{part}" for i in range(3) for part in ("up", "down")] + ["head"]


def cutter(method="svd_llm", batches=None):
    """What a stage does: statistics of the model as it is, and surgery by them."""
    batches = batches or stack_batches()
    chosen = method if isinstance(method, Method) else METHODS[method]

    def cut(model):
        data = dict(layers=STAGED, task_loss=classification_loss)
        stats = collect(model, batches, needs=chosen.needs, **data) if chosen.needs else None
        return compress(model, chosen, 0.6, stats, batches=batches, **data)

    return cut


def staged(method="svd_llm", model=None, batches=None, loss=classification_loss, **more):
    model, batches = model or copy.deepcopy(BASE), batches or stack_batches()
    report = correction.compress_in_stages(model, cutter(method, batches), loss, batches, layers=STAGED, **more)
    return model, report


@pytest.mark.parametrize("method", ["svd", "asvd", "svd_llm_update"])
def test_one_stage_is_the_cut(method):
    ours, report = staged(method, stages=1)
    theirs = copy.deepcopy(BASE)
    assert report == cutter(method)(theirs) and same(ours, theirs)


def test_stages_keep_biases_flags_and_mode():
    model = copy.deepcopy(BASE).train()
    model.head.bias.requires_grad_(False)
    model.blocks[0].up.weight.requires_grad_(False)
    staged(model=model)
    for name in STAGED:
        low_rank = model.get_submodule(name)
        assert torch.equal(low_rank.bias, BASE.get_submodule(name).bias) and low_rank.training, name
        assert low_rank.bias.requires_grad == (name != "head"), name
        assert low_rank.U.weight.requires_grad == low_rank.V.weight.requires_grad == (name != "blocks.0.up"), name


def test_two_stages_by_hand():
    """Cut; densify; one gradient for all; project; whiten and decompose the corrected model; cut it again."""
    ours, report = staged()
    batches, model = stack_batches(), copy.deepcopy(BASE)
    cutter()(model)
    model = densified(model)
    for batch in batches:
        (classification_loss(model, batch) / len(batches)).backward()
    for name in STAGED:
        layer, W = model.get_submodule(name), BASE.get_submodule(name).weight.detach()
        g, lost = layer.weight.grad, W - layer.weight.detach()
        layer.weight.data += (g * lost).sum() / (g * g).sum() * g
    cutter()(model)
    x = batches[0][0]
    torch.testing.assert_close(ours(x), model(x), rtol=1e-3, atol=1e-3)
    plain = copy.deepcopy(BASE)
    cutter()(plain)
    assert (plain(x) - model(x)).norm() > 20 * (ours(x) - model(x)).norm()
    assert list(report.ranks) == STAGED


@pytest.mark.parametrize("method", ["svd_llm", "zs_svd"])
def test_stages_count_against_the_original_sizes_and_lower_the_loss(method):
    batches, losses = stack_batches(), []
    for number in (1, 3):
        model, report = staged(method, stages=number)
        weights = {name: model.get_submodule(name) for name in STAGED}
        stored = sum(p.numel() for module in weights.values() for p in module.parameters() if p.dim() == 2)
        total = sum(module.in_features * module.out_features for module in weights.values())
        assert report.achieved == pytest.approx(1 - stored / total) and report.achieved > 0.6 - 1 / total
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
    compress(model, "svd", 0.4, layers=STAGED)
    with pytest.raises(ValueError, match="compressed already"):
        staged(model=model)
