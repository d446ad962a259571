import numpy as np
import pytest
import torch
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.rivals.correction import as_linear, product_gradients, restoring_step
from prehab_lib.surgery import compress
from tests.helpers import Toy, layer, toy_batches
from tests.rivals.test_correction import LAYERS, cut, densified, inner, matrices
from tests.stack import bits, untouched

# The step


def test_one_gradient_changes_the_loss_as_restoring_what_was_lost_would():
    for seed in range(20):
        lost, g = matrices(7, 5, seed=seed, count=2)
        g = g * 10.0 ** (seed - 10)
        step = restoring_step(lost, [g])
        assert inner(g, step) == pytest.approx(inner(g, lost), rel=1e-10)
        assert step.norm() <= lost.norm() and float((step - inner(g, lost) / inner(g, g) * g).norm()) < 1e-12
    along = restoring_step(3.0 * g, [g])
    torch.testing.assert_close(along, 3.0 * g, rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [2, 4])
def test_several_gradients_all_see_the_same_change(count):
    for seed in range(20):
        lost, *gs = matrices(7, 5, seed=seed, count=1 + count)
        step = restoring_step(lost, gs)
        for g in gs:
            assert inner(g, step) == pytest.approx(inner(g, lost), abs=1e-4 * float(g.norm() * lost.norm()))
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


def test_no_gradient_no_step():
    lost = matrices(7, 5)[0]
    for gs in ([torch.zeros(7, 5)], [torch.zeros(7, 5)] * 3):
        assert torch.equal(restoring_step(lost, gs), torch.zeros(7, 5, dtype=torch.float64))
    (g,) = matrices(7, 5, seed=1)
    assert torch.isfinite(restoring_step(lost, [g, torch.zeros_like(g)])).all()


def test_the_rank_grows_by_that_of_the_gradient_at_most():
    W, _, _ = layer(14, 10, 300)
    left, right = matrices(14, 2)[0], matrices(2, 10, seed=1)[0]
    kept = torch.linalg.svd(W)[0][:, :3]
    kept = kept @ kept.T @ W
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
    found = product_gradients(model, {name: model.get_submodule(name) for name in LAYERS}, batches, loss)
    dense = densified(model)
    for batch in batches:
        (loss(dense, batch) / len(batches)).backward()
    for name in LAYERS:
        (ours,) = found[name]
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours.float(), dense.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-6)
    assert untouched(model, before) and all(p.grad is None for p in model.parameters())


def test_groups_of_batches_take_turns():
    model, batches = Toy(), toy_batches(5)
    cut(model, batches, layers=["query"])
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
