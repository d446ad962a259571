"""The projected-gradient correction: its step, its gradient, the recovery by hand, and what can go wrong."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import Method
from prehab_lib.rivals.correction import as_linear, product, product_gradients, projected_gradient, restoring_step
from prehab_lib.rivals.shared import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import Toy, layer, toy_batches
from tests.stack import bits, changed, refuses, stack_batches, trained, untouched

LAYERS = ("query", "key", "out")
BASE = trained()
CORRECTED = Method("gram", "uniform", "projected_gradient")


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
        step = restoring_step(lost, [g])
        assert inner(g, step) == pytest.approx(inner(g, lost), rel=1e-10), seed
        assert step.norm() <= lost.norm() and float((step - inner(g, lost) / inner(g, g) * g).norm()) < 1e-12, seed
    torch.testing.assert_close(restoring_step(3.0 * g, [g]), 3.0 * g, rtol=1e-12, atol=0)


def test_several_gradients_all_see_the_same_change():
    for seed in range(40):
        lost, *gs = matrices(7, 5, seed=seed, count=3 if seed < 20 else 5)
        step = restoring_step(lost, gs)
        for g in gs:
            assert inner(g, step) == pytest.approx(inner(g, lost), abs=1e-4 * float(g.norm() * lost.norm())), seed
        assert step.norm() <= lost.norm()
        span = torch.linalg.qr(torch.stack([g.flatten() for g in gs]).T).Q
        torch.testing.assert_close((span @ span.T @ lost.flatten()).view(7, 5), step, rtol=0, atol=1e-4)


def test_the_ridge_is_a_millionth_of_the_mean_squared_norm():
    """Against the normal equations in numpy, where two gradients are so close that the ridge decides."""
    lost, g, other = (part.numpy() for part in matrices(7, 5, count=3))
    gs = [g, g + 1e-3 * other, 2 * g]
    gamma = np.array([[(a * b).sum() for b in gs] for a in gs])
    c = np.linalg.solve(gamma + 1e-6 * np.trace(gamma) / 3 * np.eye(3), [(a * lost).sum() for a in gs])
    expected = sum(c_j * g_j for c_j, g_j in zip(c, gs, strict=True))
    ours = restoring_step(torch.from_numpy(lost), [torch.from_numpy(g) for g in gs])
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_no_gradient_no_step_and_the_rank_grows_by_that_of_the_gradient_at_most():
    lost, g = matrices(7, 5, count=2)
    for gs in ([torch.zeros(7, 5)], [torch.zeros(7, 5)] * 3):
        assert torch.equal(restoring_step(lost, gs), torch.zeros(7, 5, dtype=torch.float64))
    assert torch.isfinite(restoring_step(lost, [g, torch.zeros_like(g)])).all()
    W, _, _ = layer(14, 10, 300)
    left, right = matrices(14, 2)[0], matrices(2, 10, seed=1)[0]
    U = torch.linalg.svd(W)[0][:, :3]
    kept = U @ U.T @ W
    assert int(torch.linalg.matrix_rank(kept + restoring_step(W - kept, [left @ right]))) == 3 + 2


# The gradient


def token_loss(model, batch):
    """A mean over the labelled tokens of a padded batch."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).flatten(0, -2)
    return nn.functional.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100)


class Tokens(Toy):
    def forward(self, x, attention_mask):
        h = torch.relu(self.query(x)) + torch.tanh(self.key(x))
        return self.out(h * attention_mask[..., None])


def padded():
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(12, 6, 12, generator=generator), torch.ones(12, 6)
    mask[4:, 3:] = 0
    labels = torch.randint(4, (12, 6), generator=generator).masked_fill(mask == 0, -100)
    labels[0, 1] = -100
    whole = {"x": x, "attention_mask": mask, "labels": labels}
    return [{name: value[i : i + 4] for name, value in whole.items()} for i in (0, 4, 8)]


@pytest.mark.parametrize("kind", ["labels", "padded tokens", "declared mean"])
def test_it_is_autograds_on_the_model_multiplied_out(kind):
    model, batches, loss = {
        "labels": (Toy(), toy_batches(3), lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])),
        "declared mean": (Toy(), toy_batches(3), classification_loss),
        "padded tokens": (Tokens(), padded(), token_loss),
    }[kind]
    compress(model, "svd", 0.5)
    before = bits(model)
    slopes = product_gradients(model, {name: model.get_submodule(name) for name in LAYERS}, batches, loss)
    dense = densified(model)
    for batch in batches:
        (loss(dense, batch) / len(batches)).backward()
    for name in LAYERS:
        (ours,) = slopes[name]
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours.float(), dense.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-6)
    assert untouched(model, before) and all(p.grad is None for p in model.parameters())


def test_groups_of_batches_take_turns():
    model, batches = Toy(), toy_batches(5)
    compress(model, "svd", 0.5, layers=["query"])
    layers = {"query": model.query}
    halves = product_gradients(model, layers, iter(batches), classification_loss, 2)["query"]
    apart = [product_gradients(model, layers, batches[i::2], classification_loss)["query"][0] for i in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(halves, apart, strict=True)) and not torch.equal(*apart)
    with pytest.raises(ValueError, match="gradients = 6 needs as many batches, and there are 5"):
        product_gradients(model, layers, batches, classification_loss, 6)


def test_a_dense_twin_is_the_same_layer():
    model = Toy().train()
    model.query.bias.requires_grad_(False)
    model.key.weight.requires_grad_(False)
    compress(model, "svd", 0.5)
    for name in LAYERS:
        low = model.get_submodule(name)
        dense = as_linear(low)
        x = torch.randn(9, low.in_features, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(dense(x), low(x))
        assert dense.bias is low.bias and dense.training and type(dense) is nn.Linear
        assert dense.weight.requires_grad == (name != "key") == low.U.weight.requires_grad
    assert as_linear(LowRankLinear(5, 4, 2, bias=False, dtype=torch.bfloat16)).weight.dtype == torch.bfloat16


# The recovery


def recover(model, decompositions, stats, batches, **more):
    given = dict(stats=stats, weighting="gram", task_loss=classification_loss, batches=batches)
    projected_gradient(model, decompositions=decompositions, **given | more)


def stack(removed=0.6, ruler="gram"):
    model, batches = copy.deepcopy(BASE), stack_batches()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    stats = collect(model, batches, names)
    decompositions = decompose_all(model, stats, ruler)
    compress(model, Method(ruler), removed, stats, decompositions=decompositions)
    return model, decompositions, stats, batches


@pytest.mark.parametrize("gradients", [1, 2])
@pytest.mark.parametrize("ruler", ["gram", "identity"])
def test_factors_are_the_truncation_of_what_was_kept_and_the_step(gradients, ruler):
    """By hand: densify, autograd at one set of weights, project, factorise under the ruler again, truncate."""
    model, decompositions, stats, batches = stack(ruler=ruler)
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
        lost = BASE.get_submodule(name).weight.detach().double() - kept[name]
        gamma = torch.tensor([[inner(a, b) for a in gs] for b in gs], dtype=torch.float64)
        ridge = 1e-6 * gamma.trace() / len(gs) * torch.eye(len(gs)) if len(gs) > 1 else 0.0
        c = torch.linalg.solve(gamma + ridge, torch.tensor([inner(g, lost) for g in gs], dtype=torch.float64))
        whole = kept[name] + sum(c_j * g for c_j, g in zip(c, gs, strict=True))
        Q = stats[name].gram_root() if ruler == "gram" else torch.eye(whole.shape[1], dtype=torch.float64)
        U = torch.linalg.svd(whole @ Q)[0][:, :rank]
        expected = (U @ U.T @ whole).float()
        module = model.get_submodule(name)
        assert module.rank == rank == module.U.weight.shape[1] and torch.linalg.matrix_rank(module.weight) == rank
        torch.testing.assert_close(module.weight, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    assert changed(model, before) == {f"{name}.{factor}.weight" for name in ranks for factor in "UV"}


@pytest.mark.parametrize("gradients", [1, 2])
def test_the_loss_falls_on_a_small_example(gradients):
    for removed in (0.4, 0.6):
        model, decompositions, stats, batches = stack(removed)
        losses = [loss_at(m, {}, {}, classification_loss, batches) for m in (BASE, model)]
        recover(model, decompositions, stats, batches, gradients=gradients)
        assert losses[0] < loss_at(model, {}, {}, classification_loss, batches) < losses[1], removed


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
        ({"batches": []}, "no batches"),
        ({"gradients": 5}, "gradients = 5 needs as many batches"),
        also=lambda: untouched(model, before) and dict(model.named_modules()) == modules,
    )


def test_what_is_missing_is_said_before_any_work(monkeypatch):
    monkeypatch.setattr("prehab_lib.weightings.decompose", lambda *_, **__: pytest.fail("work was done"))
    model, batches = Toy(), toy_batches()
    good = dict(method=CORRECTED, stats=collect(model, batches), task_loss=classification_loss, batches=batches)
    refuses(
        lambda **change: compress(model, removed=0.4, **good | change),
        ({"task_loss": None}, "recovery 'projected_gradient' needs task_loss"),
        ({"batches": None}, "recovery 'projected_gradient' needs batches"),
        ({"method": replace(CORRECTED, recovery_options={"gradients": 0})}, "gradients = 0"),
    )
