"""Two ways to prepare for given ranks: a penalty on planned tails, and the loss of the truncated model."""

import copy

import pytest
import torch

from prehab_lib.allocation import uniform
from prehab_lib.budget import rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.layers import linear_layers
from prehab_lib.precision import Memory
from prehab_lib.prehab import Training, prehab
from prehab_lib.rivals.decomposable import Decomposable, truncated
from prehab_lib.rivals.tail import Tail, leading, tail_ratio
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import layer
from tests.stack import refuses, same

RANKS = {"query": 3, "key": None, "out": 2}
SETTINGS = dict(surrogate=Tail(RANKS, refresh=3), lam=2.0, steps=6, lr=1e-2)
PLAIN = dict(surrogate="nuclear", lam=0.0, steps=6, lr=1e-2, training=Training(log_every=None))


def run(toy, **change):
    model = copy.deepcopy(toy[0])
    return model, prehab(model, classification_loss, toy[1], toy[2], **(SETTINGS | change))


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


# Prehab


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_planned_tails_fall_below_the_controls(coordinates, toy):
    more = dict(steps=30, coordinates=coordinates, surrogate=Tail(RANKS, refresh=10))
    ours, control = run(toy, lam=20.0, **more)[0], run(toy, lam=0.0, **more)[0]
    low, high = (tails_of(model, toy[2], {"query": 3, "out": 2}) for model in (ours, control))
    assert all(low[name] < 0.7 * high[name] for name in low)


def test_zero_lambda_is_plain_fine_tuning_to_the_bit(toy):
    ours, history = run(toy, lam=0.0)
    assert same(ours, run(toy, surrogate="nuclear", lam=0.0)[0])
    assert history.rows[0]["surrogate"] > 0 and "tail" in history.rows[3] and "tail" not in history.rows[4]


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_a_layer_planned_dense_feels_no_penalty(coordinates, toy):
    ours, control = (run(toy, steps=1, lam=lam, coordinates=coordinates)[0] for lam in (50.0, 0.0))
    for name, rank in RANKS.items():
        alike = torch.equal(ours.get_submodule(name).weight, control.get_submodule(name).weight)
        assert alike == (rank is None), name
    everything_dense = Tail(dict.fromkeys(RANKS), refresh=3)
    assert same(run(toy, surrogate=everything_dense, lam=50.0)[0], run(toy, lam=0.0)[0])


def test_no_decomposition_between_refreshes(toy, monkeypatch):
    calls, svd = [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    monkeypatch.setattr(torch.linalg, "svdvals", lambda *_: pytest.fail("a decomposition in the loop"))
    run(toy, steps=7, training=Training(log_every=None))
    assert len(calls) == 3 * 2  # at steps 0, 3 and 6, of two layers


def test_a_plan_is_made_anew_from_the_model_as_it_is(toy):
    seen = []

    def plan(model):
        assert torch.is_grad_enabled() and model.training  # a plan may differentiate on its own
        stats = collect(model, toy[1], list(RANKS), needs={"gram", "grad"}, task_loss=classification_loss)
        seen.append(model.query.weight.detach().clone())
        return uniform(decompose_all(model, stats), 0.3 if len(seen) == 1 else 0.8)

    _, history = run(toy, surrogate=Tail(plan=plan, refresh=3))
    assert len(seen) == 2 and torch.equal(seen[0], toy[0].query.weight) and not torch.equal(*seen)
    ranks = [history.rows[step]["tail"]["ranks"] for step in (0, 3)]
    cuts = decompose_all(toy[0], toy[2])
    assert ranks == [uniform(cuts, 0.3), uniform(cuts, 0.8)]


def test_bad_options_are_named_and_nothing_changes(toy):
    cases = [
        ({}, "give either ranks=.* or plan="),
        ({"ranks": RANKS, "plan": len}, "give either ranks=.* or plan="),
        ({"ranks": RANKS, "refresh": 0}, "refresh = 0"),
        ({"ranks": {"query": 3, "key": 3}}, "ranks of the tail penalty lacks layer 'out'"),
        ({"ranks": RANKS | {"out": 5}}, "rank of out = 5: give a whole number, 4 at most"),
        ({"plan": lambda model: {"query": 3}}, "the plan of the tail penalty lacks layer 'key'"),
    ]
    model = copy.deepcopy(toy[0])
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            prehab(model, classification_loss, toy[1], toy[2], **SETTINGS | dict(surrogate=Tail(**options)))
        assert same(model, toy[0]) and all(p.requires_grad for p in model.parameters()), message


def test_where_a_plan_cannot_look_at_the_model_it_is_refused(toy):
    tail = Tail(plan=lambda model: pytest.fail("asked"))
    with pytest.raises(ValueError, match="use coordinates='weight', or fix"):
        run(toy, surrogate=tail, coordinates="whitened")
    half = copy.deepcopy(toy[0]).bfloat16(), toy[1], toy[2]
    with pytest.raises(ValueError, match="pass compute='float32', or fix"):
        run(half, surrogate=tail)
    fixed, _ = run(half)
    planned, _ = run(half, surrogate=Tail(plan=lambda model: RANKS, refresh=3), memory=Memory(compute="float32"))
    assert {p.dtype for p in (*fixed.parameters(), *planned.parameters())} == {torch.bfloat16}
    assert not same(fixed, half[0])


# Decomposable


def left_vectors(model, stats):
    M = {name: layer.weight.detach().double() @ stats[name].gram_root() for name, layer in linear_layers(model).items()}
    return {name: torch.linalg.svd(m, full_matrices=False).U.float() for name, m in M.items()}


def test_its_second_pass_is_the_model_that_surgery_makes(toy):
    model, batches, stats = toy
    for removed in (0.4, 0.6):
        loss, cut = Decomposable(classification_loss, stats, alpha=1.0, removed=(removed,) * 2), copy.deepcopy(model)
        compress(cut, "svd_llm", removed, stats)
        torch.testing.assert_close(loss(model, batches[0]), classification_loss(cut, batches[0]), rtol=1e-5, atol=1e-6)


def test_no_share_is_ordinary_training(toy):
    ours, theirs = copy.deepcopy(toy[0]), copy.deepcopy(toy[0])
    prehab(ours, Decomposable(classification_loss, toy[2], alpha=0.0), toy[1], toy[2], **PLAIN)
    prehab(theirs, classification_loss, toy[1], toy[2], **PLAIN)
    assert same(ours, theirs)


def test_the_gradient_is_that_of_the_projected_weight(toy):
    """Γ at Ŵ, projected: by hand, with Q held fixed."""
    model, batches, stats = toy
    loss = Decomposable(classification_loss, stats, alpha=0.25, removed=(0.5, 0.5))
    loss(model, batches[0]).backward()
    found = model.query.weight.grad.clone()
    model.zero_grad()
    classification_loss(model, batches[0]).backward()
    plain = model.query.weight.grad.clone()
    layers, U = linear_layers(model), left_vectors(model, stats)
    cut = copy.deepcopy(model)
    for name, W in truncated(layers, U, 0.5).items():
        cut.get_parameter(name).data = W.detach()
    cut.zero_grad()
    classification_loss(cut, batches[0]).backward()
    Q = U["query"][:, : rank_for(model.query.weight.shape, 0.5)]
    byhand = 0.75 * plain + 0.25 * Q @ (Q.T @ cut.query.weight.grad)
    torch.testing.assert_close(found, byhand, rtol=1e-4, atol=1e-6)


def test_it_lowers_the_loss_after_surgery_more_than_plain_training(toy):
    scores = {}
    for alpha in (0.0, 0.5):
        model = copy.deepcopy(toy[0])
        task_loss = Decomposable(classification_loss, toy[2], alpha=alpha, removed=(0.6, 0.8))
        prehab(model, task_loss, toy[1], toy[2], **PLAIN | dict(steps=60))
        compress(model, "svd_llm", 0.8, collect(model, toy[1]))
        scores[alpha] = sum(float(classification_loss(model, batch).detach()) for batch in toy[1])
    assert scores[0.5] < scores[0.0]


def test_decompositions_are_held_between_refreshes(toy, monkeypatch):
    calls = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(0) or svd(*a, **k))
    prehab(copy.deepcopy(toy[0]), Decomposable(classification_loss, toy[2], refresh=3), toy[1], toy[2], **PLAIN)
    assert len(calls) == 2 * 3  # six steps, three layers


def test_a_seed_draws_the_same_ranks(toy):
    terms = [Decomposable(classification_loss, toy[2], seed=seed) for seed in (0, 0, 1)]
    first, again, other = (float(term(toy[0], toy[1][0]).detach()) for term in terms)
    assert first == again != other


def test_bad_options_of_the_loss_are_named(toy):
    refuses(
        lambda **change: Decomposable(classification_loss, toy[2], **change),
        ({"alpha": 1.5}, "alpha = 1.5: give a number from 0 to 1"),
        ({"removed": (0.8, 0.2)}, "the range starts with the smaller"),
        ({"removed": (0.0, 0.2)}, "strictly between 0 and 1"),
        ({"refresh": 0}, "refresh = 0"),
    )
