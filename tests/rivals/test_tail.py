import copy

import pytest
import torch

from prehab_lib.evaluate import classification_loss
from prehab_lib.prehab import prehab
from prehab_lib.rivals.tail import Tail, TailTerm, ascended, equal_total, inverse_curvature, leading, tail_ratio
from prehab_lib.stats import LayerStats, collect
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
    return TailTerm(tail, dict(model.named_children()), stats, 0.0, "float64", "device", reduction)


def tails_of(model, stats, ranks):
    found = {}
    for name, rank in ranks.items():
        sigma = torch.linalg.svdvals(model.get_submodule(name).weight.detach().double() @ stats[name].gram_root())
        found[name] = float(sigma[rank:].square().sum() / sigma.square().sum())
    return found


# The penalty and its gradient


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
    weights = {"query": 3.0, "key": 5.0, "out": 1.0}
    term = term_for(model, stats, Tail(RANKS, weights=weights), reduction)
    term.refresh(model, 0, [])
    value = term.backward(sum(p.sum() for p in model.parameters()) * 0.0, 0.7, joint=False)
    expected, tails = 0.0, tails_of(model, stats, {"query": 3, "out": 2})
    for name, share in (("query", 0.75 * scale), ("out", 0.25 * scale)):
        L, W = stats[name].gram_root(), model.get_submodule(name).weight
        A, expected = W.detach().double() @ L, expected + share * tails[name]
        Q, _ = leading(A, RANKS[name])
        closed = 0.7 * share * 2 * (A - Q @ Q.T @ A) @ L.T / A.square().sum()
        torch.testing.assert_close(W.grad, closed.float(), rtol=1e-4, atol=1e-8)
    assert not model.key.weight.grad.any()
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_majorise_and_minimise_never_raises_the_tail():
    """Plain gradient steps on the penalty alone, with refreshes: what is dropped falls at each of them."""
    W, stats, _ = layer(14, 10, 300, spread=1.0)
    L = stats.gram_root()
    W, step = W.clone().requires_grad_(True), 0.5 / float(torch.linalg.matrix_norm(L, 2) ** 2)
    start = last = float(torch.linalg.svdvals(W.detach() @ L)[4:].square().sum())
    for i in range(60):
        A = W @ L
        if i % 10 == 0:
            Q, _ = leading(A.detach(), 4)
        (gradient,) = torch.autograd.grad(tail_ratio(A, Q) * A.detach().square().sum(), W)
        with torch.no_grad():
            W -= step * gradient
            A = W @ L
            bound = float((A - Q @ Q.T @ A).square().sum())
            assert float(torch.linalg.svdvals(A)[4:].square().sum()) <= bound * (1 + 1e-9)
            assert bound <= last * (1 + 1e-9)
            last = bound
    assert last < 0.2 * start


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_a_refresh_never_raises_the_penalty(coordinates, toy):
    model, _, stats = toy
    term = term_for(model, stats, Tail(RANKS, refresh=1))
    term.refresh(model, 0, [])
    trained, _ = run(toy, surrogate=Tail(RANKS, refresh=50), coordinates=coordinates)
    with torch.no_grad():
        for name in RANKS:
            model.get_submodule(name).weight.copy_(trained.get_submodule(name).weight)
    stale = float(term.value())
    term.refresh(model, 1, [])
    assert float(term.value()) < stale
    tails = tails_of(model, stats, {"query": 3, "out": 2})
    assert float(term.value()) == pytest.approx(sum(tails.values()) / 2, rel=1e-6)


# Weights


def test_weights_sum_to_what_uniform_weights_would(toy):
    assert equal_total({"a": 1.0, "b": 3.0}, 6) == {"a": 1.5, "b": 4.5}
    assert equal_total({}, 6) == {}
    _, history = run(toy)
    assert history.rows[0]["tail"]["weights"] == {"query": 1.5, "out": 1.5}
    _, history = run(toy, surrogate=Tail(RANKS, equal_total=False))
    assert history.rows[0]["tail"]["weights"] == {"query": 1.0, "out": 1.0}


def test_a_weight_rises_if_and_only_if_its_tail_is_above_target():
    before = {"above": 1.0, "below": 1.3, "there": 0.7, "empty": 0.9, "far": 1.0}
    tails = {"above": 0.3, "below": 0.1, "there": 0.2, "empty": 0.0, "far": 1.0}
    targets = dict.fromkeys(before, 0.2) | {"empty": 0.0, "far": 1e-300}
    after = ascended(before, tails, targets, 0.5, (0.1, 10.0))
    assert after["above"] == pytest.approx(torch.tensor(0.25).exp().item()) and after["below"] < before["below"]
    assert after["there"] == before["there"] and after["empty"] == before["empty"] and after["far"] == 10.0
    assert ascended({"a": 0.11}, {"a": 0.0}, {"a": 1.0}, 5.0, (0.1, 10.0)) == {"a": 0.1}


def test_dual_ascent_starts_from_half_the_first_tail_and_moves_at_each_refresh(toy):
    tail = Tail(RANKS, refresh=3, ascent=0.5, targets={"out": 0.9}, equal_total=False)
    _, history = run(toy, surrogate=tail, steps=7)
    first, second, third = (history.rows[step]["tail"] for step in (0, 3, 6))
    assert first["weights"] == {"query": 1.0, "out": 1.0}
    assert first["targets"] == second["targets"] == {"query": first["tails"]["query"] / 2, "out": 0.9}
    for before, after in ((first, second), (second, third)):
        assert (after["weights"]["query"] > before["weights"]["query"]) == (
            after["tails"]["query"] > first["targets"]["query"]
        )
        assert after["weights"]["out"] < before["weights"]["out"]


def test_equal_layers_get_equal_weights_and_flat_ones_more(toy):
    stats = collect(toy[0], toy[1], needs={"gram", "grad"}, task_loss=classification_loss)
    twins = {name: stats["query"] for name in ("a", "b")}
    assert inverse_curvature(twins) == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
    steep = LayerStats(gram=stats["query"].gram, grad=2 * stats["query"].grad)
    weights = inverse_curvature(twins | {"steep": steep})
    assert weights["a"] == weights["b"] == pytest.approx(2.0) and weights["steep"] == pytest.approx(0.5)
    flat = LayerStats(gram=stats["query"].gram, grad=1e-9 * stats["query"].grad)
    assert inverse_curvature({"flat": flat, "steep": steep})["flat"] == pytest.approx(10.0)
    gone = LayerStats(gram=stats["query"].gram, grad=torch.zeros_like(stats["query"].grad))
    assert inverse_curvature({"a": gone}) == {"a": 1.0}
    with pytest.raises(ValueError, match="inverse_curvature needs the statistic 'grad'"):
        inverse_curvature(toy[2])


def test_curvature_is_measured_in_whitened_coordinates(toy):
    """The gradient with respect to A = W L, by autograd."""
    stats = collect(toy[0], toy[1], needs={"gram", "grad"}, task_loss=classification_loss)
    stats["query"].grad *= 4  # within the bounds of each other
    size = {}
    for name in ("query", "out"):
        L = stats[name].gram_root(1e-6)
        size[name] = float(torch.linalg.solve(L, stats[name].grad.T).square().mean())
    weights = inverse_curvature({name: stats[name] for name in size})
    assert weights["query"] / weights["out"] == pytest.approx(size["out"] / size["query"], rel=1e-6)


def test_curvature_needs_an_invertible_root():
    with pytest.raises(ValueError, match="floor = 0: give a positive number"):
        inverse_curvature({}, floor=0)
