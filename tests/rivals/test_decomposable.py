import copy

import pytest
import torch

from prehab_lib.budget import rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.layers import linear_layers
from prehab_lib.prehab import Training, prehab
from prehab_lib.rivals.decomposable import Decomposable, truncated
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from tests.helpers import Toy, toy_batches
from tests.stack import refuses, same

SETTINGS = dict(surrogate="nuclear", lam=0.0, steps=6, lr=1e-2, training=Training(log_every=None))


@pytest.fixture
def toy():
    model, batches = Toy(), toy_batches()
    return model, batches, collect(model, batches)


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
    prehab(ours, Decomposable(classification_loss, toy[2], alpha=0.0), toy[1], toy[2], **SETTINGS)
    prehab(theirs, classification_loss, toy[1], toy[2], **SETTINGS)
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
        prehab(model, task_loss, toy[1], toy[2], **SETTINGS | dict(steps=60))
        compress(model, "svd_llm", 0.8, collect(model, toy[1]))
        scores[alpha] = sum(float(classification_loss(model, batch).detach()) for batch in toy[1])
    assert scores[0.5] < scores[0.0]


def test_decompositions_are_held_between_refreshes(toy, monkeypatch):
    calls = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(0) or svd(*a, **k))
    prehab(copy.deepcopy(toy[0]), Decomposable(classification_loss, toy[2], refresh=3), toy[1], toy[2], **SETTINGS)
    assert len(calls) == 2 * 3  # six steps, three layers


def test_a_seed_draws_the_same_ranks(toy):
    terms = [Decomposable(classification_loss, toy[2], seed=seed) for seed in (0, 0, 1)]
    first, again, other = (float(term(toy[0], toy[1][0]).detach()) for term in terms)
    assert first == again != other


def test_bad_options_are_named(toy):
    refuses(
        lambda **change: Decomposable(classification_loss, toy[2], **change),
        ({"alpha": 1.5}, "alpha = 1.5: give a number from 0 to 1"),
        ({"removed": (0.8, 0.2)}, "the range starts with the smaller"),
        ({"removed": (0.0, 0.2)}, "strictly between 0 and 1"),
        ({"refresh": 0}, "refresh = 0"),
    )
