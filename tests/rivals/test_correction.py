import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import Method
from prehab_lib.rivals.correction import product, projected_gradient
from prehab_lib.rivals.trial import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import Toy, toy_batches
from tests.stack import bits, stack_batches, trained, untouched

LAYERS = ("query", "key", "out")
BASE = trained()
CORRECTED = Method("gram", "uniform", "projected_gradient")


def matrices(*shape, seed=0, count=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(count)]


def inner(a, b):
    return float((a * b).sum())


def cut(model, batches, removed=0.5, layers=None, ruler="gram"):
    stats = collect(model, batches, layers)
    decompositions = decompose_all(model, stats, ruler)
    compress(model, Method(ruler), removed, stats, decompositions=decompositions)
    return decompositions, stats


def densified(model):
    dense = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            parent, _, child = name.rpartition(".")
            linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            linear.weight.data, linear.bias = module.weight.detach().clone(), copy.deepcopy(module.bias)
            setattr(dense.get_submodule(parent), child, linear)
    return dense


# The recovery


def recover(model, decompositions, stats, batches, **more):
    given = dict(stats=stats, weighting="gram", task_loss=classification_loss, batches=batches)
    projected_gradient(model, decompositions=decompositions, **given | more)


def stack(removed=0.6, ruler="gram"):
    dense, batches = copy.deepcopy(BASE), stack_batches()
    model = copy.deepcopy(dense)
    names = [name for name, module in dense.named_modules() if isinstance(module, nn.Linear)]
    decompositions, stats = cut(model, batches, removed, names, ruler)
    return dense, model, decompositions, stats, batches


@pytest.mark.parametrize("gradients", [1, 2])
@pytest.mark.parametrize("ruler", ["gram", "identity"])
def test_factors_are_the_truncation_of_what_was_kept_and_the_step(gradients, ruler):
    """By hand: densify, autograd at one set of weights, project, factorise under the ruler again, truncate."""
    dense, model, decompositions, stats, batches = stack(ruler=ruler)
    ranks = {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankLinear)}
    twins = [densified(model) for _ in range(gradients)]
    for i, twin in enumerate(twins):
        for batch in batches[i::gradients]:
            (classification_loss(twin, batch) / len(batches[i::gradients])).backward()
    kept = {name: product(model.get_submodule(name)) for name in ranks}
    before = bits(model)
    recover(model, decompositions, stats, batches, weighting=ruler, gradients=gradients)
    for name, rank in ranks.items():
        gs = [twin.get_submodule(name).weight.grad.double() for twin in twins]
        lost = dense.get_submodule(name).weight.detach().double() - kept[name]
        gamma = torch.tensor([[inner(a, b) for a in gs] for b in gs], dtype=torch.float64)
        ridge = 1e-6 * gamma.trace() / len(gs) * torch.eye(len(gs)) if len(gs) > 1 else 0.0
        c = torch.linalg.solve(gamma + ridge, torch.tensor([inner(g, lost) for g in gs], dtype=torch.float64))
        whole = kept[name] + sum(c_j * g for c_j, g in zip(c, gs, strict=True))
        Q = stats[name].gram_root() if ruler == "gram" else torch.eye(whole.shape[1], dtype=torch.float64)
        U = torch.linalg.svd(whole @ Q)[0][:, :rank]
        expected = (U @ U.T @ whole).float()
        module = model.get_submodule(name)
        assert module.rank == rank == module.U.weight.shape[1] and torch.linalg.matrix_rank(module.weight) == rank
        scale = float(expected.abs().max())
        torch.testing.assert_close(module.weight, expected, rtol=0, atol=2e-4 * scale)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{factor}.weight" for name in ranks for factor in "UV"}


@pytest.mark.parametrize("gradients", [1, 2])
def test_the_loss_falls_on_a_small_example(gradients):
    for removed in (0.4, 0.6):
        dense, model, decompositions, stats, batches = stack(removed)
        losses = [loss_at(m, {}, {}, classification_loss, batches) for m in (dense, model)]
        recover(model, decompositions, stats, batches, gradients=gradients)
        corrected = loss_at(model, {}, {}, classification_loss, batches)
        assert losses[0] < corrected < losses[1]


def test_a_zero_gradient_changes_no_bit():
    _, model, decompositions, stats, batches = stack()
    before = bits(model)
    recover(model, decompositions, stats, batches, task_loss=lambda model, batch: 0.0 * model(batch[0]).sum())
    assert untouched(model, before)


def test_frozen_weights_and_modes_are_as_before():
    _, model, decompositions, stats, batches = stack()
    model.train().requires_grad_(False)
    model.head.eval()
    modules = dict(model.named_modules())
    recover(model, decompositions, stats, batches)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert dict(model.named_modules()) == modules and model.training and not model.head.training


# What can go wrong


def test_a_failure_gives_every_factor_back():
    _, model, decompositions, stats, batches = stack()
    before, modules = bits(model), dict(model.named_modules())
    broken = [*batches[:2], (torch.full((4, 24), float("nan")), torch.zeros(4, dtype=torch.long))]
    bad = dict(decompositions)  # the last layer fails after the others have been computed
    head = bad["head"]
    bad["head"] = Decomposition(*(torch.full_like(part, float("nan")) for part in (head.left, head.right, head.sigma)))
    for given, more, message in (
        ((decompositions, stats, broken), {}, "task_loss is nan"),
        ((bad, stats, batches), {}, "NaN"),
        ((decompositions, None, batches), {}, "needs the statistic 'gram'"),
        ((decompositions, stats, batches), {"weighting": "gramm"}, "weighting = 'gramm' is not known"),
        ((decompositions, stats, []), {}, "no batches"),
        ((decompositions, stats, batches), {"gradients": 5}, "gradients = 5 needs as many batches"),
    ):
        with pytest.raises(ValueError, match=message):
            recover(model, *given, **more)
        assert untouched(model, before) and dict(model.named_modules()) == modules


@pytest.mark.parametrize("missing", ["task_loss", "batches"])
def test_what_is_missing_is_said_before_any_work(missing, monkeypatch):
    monkeypatch.setattr("prehab_lib.weightings.decompose", lambda *_, **__: pytest.fail("work was done"))
    model, batches = Toy(), toy_batches()
    given = dict(task_loss=classification_loss, batches=batches) | {missing: None}
    with pytest.raises(ValueError, match=f"recovery 'projected_gradient' needs {missing}"):
        compress(model, CORRECTED, 0.4, collect(model, batches), **given)
    with pytest.raises(ValueError, match="gradients = 0"):
        given[missing] = dict(task_loss=classification_loss, batches=batches)[missing]
        compress(model, replace(CORRECTED, recovery_options={"gradients": 0}), 0.4, **given)
