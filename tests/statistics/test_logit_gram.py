"""The output side of IO-SVD: the probe against Jacobians taken one by one, and the ruler made of it."""

import itertools
import warnings

import pytest
import torch
from torch import nn

from prehab_lib.layers import default_layers
from prehab_lib.statistics import logit_gram
from prehab_lib.statistics.logit_gram import USUAL, Probe
from prehab_lib.stats import collect
from tests.families import IDS, inputs_of, tiny
from tests.stack import refuses


class Causal(nn.Module):
    """Tokens that read the past by a mean: forward(x (B, T, n), attention_mask=None) -> logits (B, T, classes)."""

    def __init__(self, n=3, m=4, classes=5):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.head = nn.Linear(n, m), nn.Linear(m, m), nn.Linear(m, classes)
        self.double()

    def forward(self, x, attention_mask=None):
        real = torch.ones(x.shape[:2], dtype=x.dtype) if attention_mask is None else attention_mask.to(x.dtype)
        h = torch.tanh(self.first(x)) * real[..., None]
        h = h.cumsum(1) / real.cumsum(1).clamp_min(1)[..., None]
        return self.head(torch.tanh(self.second(h)))


def inputs(*shape, seed=0):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hessian(logits, k):
    """diag(p) − p pᵀ of the renormalised top-k softmax, (classes, classes), by the definition."""
    keep = logits.argsort(descending=True)[:k]
    p = torch.zeros_like(logits)
    p[keep] = logits[keep].exp() / logits[keep].exp().sum()
    return torch.diag(p) - torch.outer(p, p)


def by_jacobians(model, name, x, k):
    """C_o of one sequence (T, n), one Jacobian for each output position and token: Σ_s Σ_t J_stᵀ H_s J_st / T."""
    layer, caught = model.get_submodule(name), []
    handle = layer.register_forward_hook(lambda module, args, out: caught.append(out))
    logits = model(x[None])[0]  # (T, classes)
    handle.remove()
    total = 0.0
    for row in logits:
        J = torch.stack([torch.autograd.grad(entry, caught[0], retain_graph=True)[0][0] for entry in row])
        H = hessian(row.detach(), k)
        total = total + sum(J[:, t].T @ H @ J[:, t] for t in range(len(x)))
    return total / len(x)


def over_all_signs(monkeypatch, shape, run):
    """The mean of `run()` over every pattern of signs of that shape: the expectation itself."""
    found = []
    for signs in itertools.product((-1.0, 1.0), repeat=shape[0] * shape[1]):
        monkeypatch.setattr(logit_gram, "_signs", lambda *_, s=signs: torch.tensor(s, dtype=torch.float64).view(shape))
        found.append(run())
    return torch.stack(found).mean(0)


def grams(model, batches, probe=USUAL, layers=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = collect(model, batches, layers, needs={"logit_gram"}, logit_probe=probe)
    return {name: found.logit_gram for name, found in stats.items()}


def test_of_one_layer_it_is_the_mean_hessian_of_the_softmax_and_many_probes_come_near(monkeypatch):
    """n draws leave an error of about 2 / √n (one draw z zᵀ errs by twice the norm of its mean)."""
    model, x = nn.Sequential(nn.Linear(3, 6)).double(), inputs(1, 3)
    for k in (2, 3, 9):
        truth, probe = hessian(model(x)[0].detach(), min(k, 6)), Probe(k=k)
        found = over_all_signs(
            monkeypatch, (1, min(k, 6)), lambda probe=probe: grams(model, [{"input": x}], probe)["0"]
        )
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-7, msg=f"k = {k}")
    monkeypatch.undo()
    x = inputs(20, 3)
    truth = torch.stack([hessian(row, 5) for row in model(x).detach()]).mean(0)
    for probes in (400, 1600):
        found = grams(model, [{"input": x}], Probe(probes=probes))["0"]
        draws = probes * len(x)
        assert 0 < float((found - truth).norm() / truth.norm()) < 2 * 2 / draws**0.5


@pytest.mark.parametrize("name", ["first", "second", "head"])
def test_effects_on_later_positions_are_counted_and_do_not_mix(monkeypatch, name):
    """Unbiased to the last digit: the mean over all 2^(T k) patterns of signs equals the sum over Jacobians."""
    model, x = Causal(), inputs(3, 3)
    found = over_all_signs(monkeypatch, (3, 2), lambda: grams(model, [{"x": x[None]}], Probe(k=2))[name])
    torch.testing.assert_close(found, by_jacobians(model, name, x, 2), rtol=0, atol=1e-7)


def test_padding_is_left_out():
    model, x = Causal(), inputs(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    clean = grams(model, [{"x": x[:, :3]}])
    x[:, 3:] = 1e3
    padded = grams(model, [{"x": x, "attention_mask": mask}])
    ignored = grams(model, [{"x": x}])
    for name, C in clean.items():
        torch.testing.assert_close(padded[name], C, rtol=1e-9, atol=1e-12)
        assert float((ignored[name] - C).norm()) > 0.05 * float(C.norm())


class Pooled(Causal):
    """A classifier that sums over all positions, so that padded ones get a gradient too."""

    def forward(self, x, attention_mask=None):
        return self.head(self.first(x).sum(1))


def test_padded_positions_of_a_classifier_do_not_count_either(monkeypatch):
    monkeypatch.setattr(logit_gram, "_signs", lambda shape, generator: torch.ones(shape))
    model, x = Pooled(), inputs(2, 3, 3)
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    one, three = (grams(model, [{"x": row[None]}], layers=["first"])["first"] for row in x)
    found = grams(model, [{"x": x, "attention_mask": mask}], layers=["first"])["first"]
    torch.testing.assert_close(found, (one + 3 * three) / 4)  # every token of a sample has the same gradient
    assert float((found - (one + three) / 2).norm()) > 1e-2 * float(found.norm())


def test_batches_and_tokens_are_averaged():
    model, x = Causal(), inputs(6, 4, 3)
    parts = [grams(model, [{"x": x[:2]}, {"x": x[2:]}])[name] for name in ("first", "head")]
    whole = [grams(model, [{"x": x}])[name] for name in ("first", "head")]
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)  # one stream of signs for all


def test_positive_semi_definite_seeded_and_nothing_left_behind():
    model = tiny("llama").train()
    model.model.embed_tokens.weight.requires_grad_(False)
    marked = model.lm_head.weight
    marked.grad = torch.ones_like(marked)
    flags = [p.requires_grad for p in model.parameters()]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    batches = [{"input_ids": IDS, "labels": IDS}] * 3
    a, b, other = (grams(model, batches, probe) for probe in (Probe(), Probe(), Probe(seed=1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == flags and model.training
    assert [p for p in model.parameters() if p.grad is not None] == [marked] and bool((marked.grad == 1).all())
    assert not any(module._forward_hooks for module in model.modules())
    for name, C in a.items():
        assert torch.equal(C, b[name]) and not torch.equal(C, other[name]) and C.dtype == torch.float64
        assert torch.equal(C, C.T) or torch.allclose(C, C.T, rtol=1e-12)
        assert float(torch.linalg.eigvalsh(C).min()) > -1e-12 * float(C.norm()) and float(C.norm()) > 0


@pytest.mark.parametrize("family", ["vit", "bert", "llama", "opt"])
def test_every_kind_of_model_has_one(family):
    """Classifiers and language models, of transformers and timm, trained or frozen: the same numbers."""
    model = tiny(family).requires_grad_(False)
    batches = [(inputs_of(model), torch.zeros(2))]
    frozen, found = grams(model, batches), grams(model.requires_grad_(True), batches)
    assert list(found) == list(frozen) == default_layers(model)
    for name, C in found.items():
        assert C.shape == (model.get_submodule(name).out_features,) * 2 and float(C.trace()) > 0
        torch.testing.assert_close(C, frozen[name], rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.03), (torch.bfloat16, 0.4)])
def test_half_precision_models_come_near(dtype, near):
    """bfloat16 ties logits that differ, so that answers change places and signs: what is left is the noise of the probes."""
    exact, half = (grams(tiny("llama", d), [{"input_ids": IDS}], Probe(probes=16)) for d in (torch.float32, dtype))
    for name, C in exact.items():
        assert float((half[name] - C).norm()) < near * float(C.norm()), name


def test_an_activation_that_works_in_place_is_no_obstacle():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 5)).double(), inputs(30, 3)
    plain = nn.Sequential(model[0], nn.ReLU(), model[2])
    for name, C in grams(model, [{"input": x}], layers=["0", "2"]).items():
        assert torch.equal(C, grams(plain, [{"input": x}], layers=["0", "2"])[name])


class Aside(Causal):
    """With a layer that is called and says nothing to the logits."""

    def __init__(self):
        super().__init__()
        self.aside = nn.Linear(5, 2).double()

    def forward(self, x):
        logits = super().forward(x)
        self.loss = self.aside(logits).sum()
        return logits


def test_bad_input_is_named():
    x, broken, one = {"x": inputs(2, 4, 3)}, Causal(), nn.Sequential(nn.Linear(3, 1))
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    for call, message in (
        (lambda: grams(Aside(), [x]), "the logits do not depend on layer 'aside' .of 1.*leave it out"),
        (lambda: grams(one, [{"input": torch.ones(4, 3)}]), r"two logits or more a row: .* of shape \(4, 1\)"),
        (lambda: Probe(k=1), "k = 1: give a whole number, 2 or larger"),
        (lambda: Probe(probes=0), "probes = 0"),
        (lambda: collect(Causal(), iter([x]), needs={"logit_gram"}), "several passes over the batches"),
        (lambda: grams(broken, [x], layers=["head"]), "NaN or infinite gradients reach layer 'head'"),
    ):
        refuses(call, ({}, message))
    assert set(grams(Aside(), [x], layers=["first", "head"])) == {"first", "head"}
    assert all(p.requires_grad for p in broken.parameters()) and not broken.head._forward_hooks


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_is_refused():
    model, x = Causal(), inputs(2, 4, 3)
    model.forward = lambda x: model.head(torch.utils.checkpoint.checkpoint(model.first, x, use_reentrant=True))
    with pytest.raises(ValueError, match="layer 'first' runs without gradients: turn gradient checkpointing off"):
        grams(model, [{"x": x}], layers=["first"])
