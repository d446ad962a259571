"""Per-sample gradients: hooks against the slow loop over samples, whatever the loss, the batch and the layer."""

import pytest
import torch
from torch import nn

from prehab_lib import gradients
from prehab_lib.evaluate import classification_loss
from prehab_lib.fisher import sample_means
from prehab_lib.gradients import GradientPass, column_squares, sandwich
from prehab_lib.layers import linear_layers
from prehab_lib.stats import collect
from tests.helpers import Toy, toy_batches


def slow(model, batches, task_loss, layer):
    """The definition: one sample, one backward pass; (samples, m, n)."""
    found = []
    weight = model.get_submodule(layer).weight
    for batch in batches:
        first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        for i in range(len(first)):
            cut = (
                {k: v[i : i + 1] for k, v in batch.items()}
                if isinstance(batch, dict)
                else tuple(v[i : i + 1] for v in batch)
            )
            found.append(torch.autograd.grad(task_loss(model, cut), weight)[0])
    return torch.stack(found).double()


def sequences(count=2, size=5, tokens=7, masked=False, seed=0):
    """Dicts for Toy: x (size, tokens, 12) with labels, padded or not."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        x = torch.randn(size, tokens, 12, generator=generator)
        mask = torch.ones(size, tokens, dtype=torch.long)
        for i in range(size if masked else 0):
            mask[i, tokens - i :] = 0
        batches.append({"x": x, "attention_mask": mask, "labels": torch.randint(4, (size,), generator=generator)})
    return batches


def token_loss(model, batch):
    """A mean over real tokens of the whole batch, as language models take it: longer samples weigh more."""
    x, mask = batch["x"], batch["attention_mask"].bool()
    return (torch.relu(model.query(x)) + torch.tanh(model.key(x))).square().sum(-1)[mask].mean()


CASES = {
    "vectors": (classification_loss, toy_batches(2, 6)),
    "sequences": (classification_loss, sequences()),
    "mean over padded tokens": (token_loss, sequences(masked=True)),
    "sum over samples": (lambda model, batch: len(batch[1]) * classification_loss(model, batch), toy_batches(2, 6)),
}


@pytest.mark.parametrize(
    ("case", "layer"),
    [
        (case, layer)
        for case in CASES
        for layer in ("query", "key", "out")
        if (case, layer) != ("mean over padded tokens", "out")
    ],
)
def test_fisher_and_gradient_equal_a_slow_loop_over_samples(case, layer):
    task_loss, batches = CASES[case]
    model = Toy().double()
    batches = [
        {k: v.double() if v.is_floating_point() else v for k, v in b.items()}
        if isinstance(b, dict)
        else (b[0].double(), b[1])
        for b in batches
    ]
    found = sample_means(
        GradientPass(model, linear_layers(model, [layer]), batches, task_loss),
        {"fisher_in", "fisher_out", "grad", "kfac_out"},
    )[layer]
    G = slow(model, batches, task_loss, layer)
    torch.testing.assert_close(found["fisher_in"], G.square().mean(0).sum(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(found["fisher_out"], G.square().mean(0).sum(1), rtol=1e-10, atol=0)
    torch.testing.assert_close(found["grad"], G.mean(0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("tokens", [1, 3, 50])
def test_both_routes_give_the_same_sums(tokens, monkeypatch):
    """Few tokens go without G, many through it, and through it in chunks."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(6, tokens, 8, dtype=torch.float64, generator=generator)
    D = torch.randn(6, tokens, 5, dtype=torch.float64, generator=generator)
    A = torch.randn(8, 8, dtype=torch.float64, generator=generator)
    G = D.mT @ X
    for limit in (gradients.LIMIT, 81):
        monkeypatch.setattr(gradients, "LIMIT", limit)
        torch.testing.assert_close(column_squares(X, D), G.square().sum((0, 1)))
        torch.testing.assert_close(column_squares(D, X), G.square().sum((0, 2)))
        torch.testing.assert_close(sandwich(X, D, A), (G @ A @ G.mT).sum(0))
    zero = column_squares(X, torch.zeros_like(D))
    assert torch.equal(zero, torch.zeros(8, dtype=torch.float64))


def test_the_square_of_a_mean_is_another_thing():
    """E ḡ² = F / b + (1 − 1 / b) (∇L)², the identity between the option and the statistic (batches drawn with replacement)."""
    model, (x, y), size = Toy().double(), toy_batches(1, 5, seed=3)[0], 2
    x = x.double()
    layers = linear_layers(model, ["query"])
    truth = sample_means(GradientPass(model, layers, [(x, y)], classification_loss), {"fisher_in", "grad"})["query"]
    pairs = [(x[[i, j]], y[[i, j]]) for i in range(5) for j in range(5)]  # every draw of two
    mean = sample_means(GradientPass(model, layers, pairs, classification_loss, per_sample=False), {"fisher_in"})[
        "query"
    ]
    expected = truth["fisher_in"] / size + (1 - 1 / size) * truth["grad"].square().sum(0)
    torch.testing.assert_close(mean["fisher_in"], expected, rtol=1e-10, atol=0)
    assert float((mean["fisher_in"] - truth["fisher_in"]).abs().max()) > 1e-3 * float(truth["fisher_in"].max())


def test_a_layer_called_twice_adds_up_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    model, batches = (
        Twice().double(),
        [(torch.randn(8, 6, dtype=torch.float64), torch.randint(6, (8,))) for _ in range(2)],
    )
    found = sample_means(GradientPass(model, linear_layers(model), batches, classification_loss), {"fisher_in"})[
        "layer"
    ]
    G = slow(model, batches, classification_loss, "layer")
    torch.testing.assert_close(found["fisher_in"], G.square().mean(0).sum(0), rtol=1e-10, atol=0)


def test_an_output_changed_in_place_has_the_gradient_of_its_own():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            return self.b(torch.relu_(self.a(x)))

    torch.manual_seed(0)
    model, batches = InPlace().double(), [(torch.randn(8, 6, dtype=torch.float64), torch.randint(4, (8,)))]
    found = sample_means(
        GradientPass(model, linear_layers(model, ["a"]), batches, classification_loss), {"fisher_out"}
    )["a"]
    torch.testing.assert_close(
        found["fisher_out"], slow(model, batches, classification_loss, "a").square().mean(0).sum(1)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_left_alone_and_close(dtype):
    model, batches = Toy(), toy_batches(2, 16)
    exact = collect(model, batches, needs={"fisher_in"}, task_loss=classification_loss)["query"].fisher_in
    half = model.to(dtype)
    rough = collect(half, [(x.to(dtype), y) for x, y in batches], needs={"fisher_in"}, task_loss=classification_loss)[
        "query"
    ]
    assert half.query.weight.dtype == dtype and rough.fisher_in.dtype == torch.float64
    assert float((rough.fisher_in - exact).norm() / exact.norm()) < 0.05


def test_nothing_of_the_model_is_changed():
    model = Toy().train()
    model.key.weight.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    collect(model, toy_batches(2, 8), needs={"fisher_in", "grad"}, task_loss=classification_loss)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())
    assert model.training and not model.key.weight.requires_grad and model.query.weight.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def raising(model, batch):
    raise RuntimeError("stop")


@pytest.mark.parametrize(
    ("task_loss", "error", "message"),
    [
        (None, ValueError, "'fisher_in' needs task_loss"),
        (raising, RuntimeError, "stop"),
        (lambda m, b: torch.zeros(()), ValueError, "has no gradient"),
        (lambda m, b: m(b[0]).sum(0), (ValueError, RuntimeError), "."),
        (lambda m, b: m.query(b[0]).sum() * float("nan"), ValueError, "NaN or infinite gradients reach layer 'query'"),
        (lambda m, b: m.query(b[0]).square().mean(), ValueError, "no gradient reaches layer 'key'"),
    ],
)
def test_bad_losses_are_named_and_hooks_come_off(task_loss, error, message):
    model = Toy()
    with pytest.raises(error, match=message):
        collect(model, toy_batches(2, 4), needs={"fisher_in"}, task_loss=task_loss)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_rows_that_are_no_samples_are_refused():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x[: len(x) // 2 + 1])[: len(x)].sum(0, keepdim=True).expand(len(x), -1)

    with pytest.raises(ValueError, match="do not divide into 4 samples: use batches of one"):
        gradients_of = GradientPass(Pairs(), {}, [], classification_loss)
        gradients_of.modules = dict(linear_layers(model := Pairs()))
        gradients_of.model, gradients_of.mean_of_samples = model, True
        gradients_of.batches = [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))]
        gradients_of.run(lambda *_: None)


def test_a_generator_is_refused_and_so_is_nothing():
    with pytest.raises(ValueError, match="several passes.*list or a DataLoader"):
        collect(Toy(), iter(toy_batches()), needs={"grad"}, task_loss=classification_loss)
    with pytest.raises(ValueError, match="no calibration batches"):
        collect(Toy(), [], needs={"grad"}, task_loss=classification_loss)
