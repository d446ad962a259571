"""Per-sample gradients: hooks against the slow loop over samples, whatever the loss, the batch and the layer."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from prehab_lib.batches import mean_over_samples
from prehab_lib.evaluate import classification_loss
from prehab_lib.layers import linear_layers
from prehab_lib.statistics import fisher
from prehab_lib.statistics.fisher import column_squares, sample_means, sandwich
from prehab_lib.statistics.gradients import GradientPass
from prehab_lib.stats import collect
from tests.helpers import Toy, toy_batches
from tests.stack import refuses


def slow(model, batches, task_loss, layer):
    """The definition: one sample, one backward pass; (samples, m, n)."""
    found, weight = [], model.get_submodule(layer).weight
    for batch in batches:
        as_dict = isinstance(batch, dict)
        for i in range(len(batch["x"] if as_dict else batch[0])):
            cut = [value[i : i + 1] for value in (batch.values() if as_dict else batch)]
            sample = dict(zip(batch, cut, strict=True)) if as_dict else tuple(cut)
            found.append(torch.autograd.grad(task_loss(model, sample), weight)[0])
    return torch.stack(found).double()


def fast(model, batches, task_loss, layer, *wanted):
    gradients = GradientPass(model, linear_layers(model, [layer]), batches, task_loss)
    return sample_means(gradients, wanted)[layer]


def check(model, batches, task_loss, layer):
    """Hooks against the slow loop, for all three statistics."""
    found = fast(model, batches, task_loss, layer, "fisher_in", "fisher_out", "grad")
    G = slow(model, batches, task_loss, layer)
    torch.testing.assert_close(found["fisher_in"], G.square().mean(0).sum(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(found["fisher_out"], G.square().mean(0).sum(1), rtol=1e-10, atol=0)
    torch.testing.assert_close(found["grad"], G.mean(0), rtol=1e-10, atol=1e-14)


def sequences(count=2, size=5, tokens=7, masked=False, seed=0):
    """Dicts for Toy: x (size, tokens, 12) with labels, padded or not."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        x = torch.randn(size, tokens, 12, generator=generator)
        real = tokens - torch.arange(size)[:, None] if masked else tokens
        mask = (torch.arange(tokens).expand(size, -1) < real).long()
        batches.append({"x": x, "attention_mask": mask, "labels": torch.randint(4, (size,), generator=generator)})
    return batches


def token_loss(model, batch):
    """A mean over real tokens of the whole batch, as language models take it: longer samples weigh more."""
    x, mask = batch["x"], batch["attention_mask"].bool()
    return (torch.relu(model.query(x)) + torch.tanh(model.key(x))).square().sum(-1)[mask].mean()


def weighted_loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], torch.tensor([1.0, 5.0, 0.2, 1.0]).to(batch[0]))


def ignoring(batches):
    """The same batches with some labels ignored, from the second batch on: the first one looks harmless."""
    return [batches[0], *[(x, torch.where(torch.arange(len(y)) % 3 == 0, -100, y)) for x, y in batches[1:]]]


def undeclared(model, batch):
    """Nobody says of this loss that it is a mean over samples."""
    return classification_loss(model, batch)


CASES = {
    "vectors": (classification_loss, toy_batches(2, 6)),
    "sequences": (classification_loss, sequences()),
    "padded sequences": (classification_loss, sequences(masked=True)),
    "mean over padded tokens": (token_loss, [*sequences(1), *sequences(2, masked=True)]),
    "sum over samples": (lambda model, batch: len(batch[1]) * undeclared(model, batch), toy_batches(2, 6)),
    "class weights": (weighted_loss, toy_batches(2, 6)),
    "ignored labels": (undeclared, ignoring(toy_batches(2, 6))),
    "ignored labels, declared loss": (classification_loss, ignoring(toy_batches(2, 6))),
}


def in_double(batch):
    if isinstance(batch, dict):
        return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    return batch[0].double(), batch[1]


@pytest.mark.filterwarnings("ignore:.*nan")
@pytest.mark.parametrize("case", CASES)
def test_fisher_and_gradient_equal_a_slow_loop_over_samples(case):
    task_loss, batches = CASES[case]
    model, batches = Toy().double(), [in_double(batch) for batch in batches]
    for layer in ("query", "key", "out"):
        if "ignored" in case:  # a sample without a label has no loss of its own
            with pytest.raises(ValueError, match="task_loss is nan.*without any label"):
                fast(model, batches, task_loss, layer, "fisher_in")
        elif (case, layer) != ("mean over padded tokens", "out"):
            check(model, batches, task_loss, layer)


def test_a_declared_loss_goes_a_batch_at_a_time_and_any_other_a_sample_at_a_time():
    calls = []

    def counted(model, batch):
        calls.append(len(batch[1]))
        return classification_loss(model, batch)

    declared = mean_over_samples(lambda model, batch: counted(model, batch))
    for task_loss, expected in ((counted, [1] * 12), (declared, [6, 6])):
        calls.clear()
        GradientPass(model := Toy(), linear_layers(model), toy_batches(2, 6), task_loss).run(lambda *_: None)
        assert calls == expected


class TokensFirst(nn.Module):
    """Its layer does not read sample by sample, so that batches go one by one."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x, attention_mask=None, labels=None):
        return self.out(torch.tanh(self.layer(x.transpose(0, 1))).mean(0))


class Twice(nn.Module):
    """A layer called twice, and one whose output is changed in place."""

    def __init__(self):
        super().__init__()
        self.layer, self.inner = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(torch.relu_(self.inner(torch.tanh(self.layer(x)))))


def test_layers_of_other_kinds_equal_the_slow_loop_too():
    torch.manual_seed(0)
    check(TokensFirst().double(), [in_double(batch) for batch in sequences()], classification_loss, "layer")
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(6, (8,))) for _ in range(2)]
    model = Twice().double()
    for layer in ("layer", "inner"):
        check(model, batches, classification_loss, layer)


def test_a_batch_counts_its_samples_by_the_labels():
    """A tensor that all samples share, here of length one, comes first."""

    class Shifted(Toy):
        def forward(self, shift, x, labels=None):
            return super().forward(x + shift)

    torch.manual_seed(0)
    model, (x, y) = Shifted().double(), in_double(toy_batches(1, 6)[0])
    batch = {"shift": torch.ones(1, 12, dtype=torch.float64), "x": x, "labels": y}
    for task_loss in (classification_loss, undeclared):
        found = fast(model, [batch], task_loss, "query", "fisher_in")["fisher_in"]
        G = slow(model, [{"x": x, "labels": y, "shift": batch["shift"].expand(6, -1)}], task_loss, "query")
        torch.testing.assert_close(found, G.square().mean(0).sum(0), rtol=1e-10, atol=0)


def test_gradients_that_cancel_keep_their_digits():
    """Keys of attention: the tokens' gradients sum to 0, so a loud constant channel has none in the end."""
    X, D = torch.randn(2, 4, 20, 64)
    X[:, :, 3] = 3000 + 0.01 * X[:, :, 3]
    D = D - D.mean(1, keepdim=True)
    squares = (D.double().mT @ X.double()).square().sum((0, 1))
    torch.testing.assert_close(column_squares(X, D).double(), squares, rtol=1e-2, atol=0)  # what float32 leaves


def test_both_routes_give_the_same_sums(monkeypatch):
    """Kronecker sums go without G for few tokens, through it for many, and in chunks."""
    for tokens, limit in itertools.product((1, 3, 50), (fisher.LIMIT, 81)):
        X, D, A = (torch.randn(*shape).double() for shape in ((6, tokens, 8), (6, tokens, 5), (8, 8)))
        G = D.mT @ X
        monkeypatch.setattr(fisher, "LIMIT", limit)
        torch.testing.assert_close(column_squares(X, D), G.square().sum((0, 1)))
        torch.testing.assert_close(column_squares(D, X), G.square().sum((0, 2)))
        torch.testing.assert_close(sandwich(X, D, A), (G @ A @ G.mT).sum(0))


def test_the_square_of_a_mean_is_another_thing():
    """E ḡ² = F / b + (1 − 1 / b) (∇L)², the identity between the option and the statistic (batches drawn with replacement)."""
    model, (x, y), size = Toy().double(), toy_batches(1, 5, seed=3)[0], 2
    x = x.double()
    pairs = [(x[[i, j]], y[[i, j]]) for i in range(5) for j in range(5)]  # every draw of two
    call = partial(collect, model, layers=["query"], needs={"fisher_in", "grad"}, task_loss=classification_loss)
    truth, mean = call([(x, y)])["query"], call(pairs, fisher="batch")["query"]
    expected = truth.fisher_in / size + (1 - 1 / size) * truth.grad.square().sum(0)
    torch.testing.assert_close(mean.fisher_in, expected, rtol=1e-10, atol=0)
    assert float((mean.fisher_in - truth.fisher_in).abs().max()) > 1e-3 * float(truth.fisher_in.max())
    torch.testing.assert_close(mean.grad, truth.grad)  # the option leaves it alone


# In float16, gradients below and squares above what it can hold neither vanish nor overflow.
@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1.0), *((torch.float16, s) for s in (1e-7, 1.0, 30.0))])
def test_half_precision_models_are_left_alone_and_close(dtype, size):
    @mean_over_samples
    def loss(model, batch):
        return size * classification_loss(model, batch)

    model, batches = Toy(), toy_batches(2, 16)
    exact = collect(model, batches, needs={"fisher_in"}, task_loss=loss)["query"].fisher_in
    batches = [(x.to(dtype), y) for x, y in batches]
    rough = collect(model.to(dtype), batches, needs={"fisher_in"}, task_loss=loss)["query"].fisher_in
    assert model.query.weight.dtype == dtype and rough.dtype == torch.float64
    assert float((rough - exact).norm() / exact.norm()) < 0.05


def test_nothing_of_the_model_is_changed():
    model = Toy().train()
    model.key.weight.requires_grad_(False)
    model.out.weight.grad = marked = torch.ones_like(model.out.weight)
    before = {name: p.clone() for name, p in model.named_parameters()}
    collect(model, toy_batches(2, 8), needs={"fisher_in", "grad"}, task_loss=classification_loss)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [p.grad for p in model.parameters() if p.grad is not None] == [marked] and bool((marked == 1).all())
    assert model.training and not model.key.weight.requires_grad and model.query.weight.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_bad_losses_and_batches_are_named_and_hooks_come_off():
    model, batches = Toy(), toy_batches(2, 4)
    shape = r"must return one number as a tensor: it returned a tensor of shape \(4,\)"
    calibrate = partial(collect, model)
    for task_loss, message in (
        (None, "'fisher_in' needs task_loss"),
        (lambda m, b: int("stop"), "invalid literal"),
        (lambda m, b: torch.zeros(()), "has no gradient"),
        (lambda m, b: m(b[0]).sum(0), shape),
        (lambda m, b: {"loss": 0}, "it returned a dict"),
        (lambda m, b: None, "it returned a NoneType"),
        (lambda m, b: m.query(b[0]).sum() * float("nan"), "task_loss is nan"),
        (lambda m, b: (m.query(b[0]) * 0).sum().sqrt(), "NaN or infinite gradients reach layer 'query'"),
        (lambda m, b: m.query(b[0]).square().mean(), "no gradient reaches layer 'key'"),
    ):
        refuses(calibrate, (dict(batches=batches, needs={"fisher_in"}, task_loss=task_loss), message))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), message
    for passed, message in ((iter(batches), "several passes.*list or a DataLoader"), ([], "no batches to calibrate")):
        refuses(calibrate, (dict(batches=passed, needs={"grad"}, task_loss=classification_loss), message))
