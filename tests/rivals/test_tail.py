import copy

import pytest
import torch

from prehab_lib.evaluate import classification_loss
from prehab_lib.precision import Memory
from prehab_lib.prehab import prehab
from prehab_lib.rivals.tail import Tail, leading, tail_ratio
from prehab_lib.stats import collect
from tests.helpers import Toy, layer, toy_batches

RANKS = {"query": 3, "key": None, "out": 2}
SETTINGS = dict(surrogate=Tail(RANKS, refresh=3), lam=2.0, steps=6, lr=1e-2)


def start():
    model, batches = Toy(), toy_batches()
    return model, batches, collect(model, batches)


@pytest.fixture
def toy():
    return start()


def run(toy, **change):
    model = copy.deepcopy(toy[0])
    return model, prehab(model, classification_loss, toy[1], toy[2], **(SETTINGS | change))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def term_for(model, stats, tail, reduction="mean"):
    return tail.term(model, stats, "weight", reduction, Memory())


def tails_of(model, stats, ranks):
    found = {}
    for name, rank in ranks.items():
        sigma = torch.linalg.svdvals(model.get_submodule(name).weight.detach().double() @ stats[name].gram_root())
        found[name] = float(sigma[rank:].square().sum() / sigma.square().sum())
    return found


def test_the_fixed_projection_lies_above_the_tail_and_touches_it():
    W, stats, _ = layer(14, 10, 300)
    A = W @ stats.gram_root()
    sigma = torch.linalg.svdvals(A)
    Q, tau = leading(A, 4)
    assert tau == pytest.approx(float(sigma[4:].square().sum() / sigma.square().sum()), rel=1e-10)
    assert float(tail_ratio(A, Q)) == pytest.approx(tau, rel=1e-8)
    for seed in range(20):
        other = torch.randn(14, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        other = torch.linalg.qr(Q + 0.1 * other).Q
        assert float(tail_ratio(A, other)) > tau * (1 + 1e-6)
    assert float(tail_ratio(torch.zeros(3, 4), torch.eye(3)[:, :1])) == 0.0
    assert leading(torch.zeros(3, 4), 1)[1] == 0.0 and leading(A, 10)[1] == 0.0


def test_its_gradient_is_the_closed_form_and_that_of_the_tail_itself():
    W, stats, _ = layer(14, 10, 300)
    L = stats.gram_root()
    W.requires_grad_(True)
    A = W @ L
    Q, _ = leading(A.detach(), 4)
    (ours,) = torch.autograd.grad(tail_ratio(A, Q), W, retain_graph=True)
    (moving,) = torch.autograd.grad(torch.linalg.svdvals(A)[4:].square().sum() / A.detach().square().sum(), W)
    A = A.detach()
    closed = 2 * (A - Q @ Q.T @ A) @ L.T / A.square().sum()
    torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(ours, moving, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(("reduction", "scale"), [("mean", 1.0), ("sum", 3.0)])
def test_the_term_adds_weight_times_that_to_the_gradient_of_each_layer(reduction, scale, toy):
    """Σ λ_ℓ is λ times the number of layers (of the mean: λ), over the two planned ones."""
    model, _, stats = toy
    term = term_for(model, stats, Tail(RANKS), reduction)
    term.refresh(0)
    assert term.notes["tail"]["weights"] == {"query": 1.5, "out": 1.5}
    value = term.backward(sum(p.sum() for p in model.parameters()) * 0.0, 0.7)
    expected, tails = 0.0, tails_of(model, stats, {"query": 3, "out": 2})
    share = 0.5 * scale
    for name in ("query", "out"):
        L, W = stats[name].gram_root(), model.get_submodule(name).weight
        A, expected = W.detach().double() @ L, expected + share * tails[name]
        Q, _ = leading(A, RANKS[name])
        closed = 0.7 * share * 2 * (A - Q @ Q.T @ A) @ L.T / A.square().sum()
        torch.testing.assert_close(W.grad, closed.float(), rtol=1e-4, atol=1e-8)
    assert not model.key.weight.grad.any()
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_a_refresh_never_raises_the_penalty(coordinates, toy):
    model, _, stats = toy
    term = term_for(model, stats, Tail(RANKS, refresh=1))
    term.refresh(0)
    trained, _ = run(toy, surrogate=Tail(RANKS, refresh=50), coordinates=coordinates)
    with torch.no_grad():
        for name in RANKS:
            model.get_submodule(name).weight.copy_(trained.get_submodule(name).weight)
    stale = float(term.value())
    term.refresh(1)
    assert float(term.value()) < stale
    tails = tails_of(model, stats, {"query": 3, "out": 2})
    assert float(term.value()) == pytest.approx(sum(tails.values()) / 2, rel=1e-6)
