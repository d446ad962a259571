import copy

import pytest
import torch

from prehab_lib import rank_term
from prehab_lib.evaluate import classification_loss
from prehab_lib.fast import FAST, Fast, fast_term, tangents
from prehab_lib.precision import Memory
from prehab_lib.prehab import Training, Whitened, prehab
from prehab_lib.stats import LayerStats
from tests.helpers import cosine
from tests.tasks.helpers import refuses

SETTINGS = dict(surrogate=Fast("nuclear"), lam=0.2, steps=6, lr=1e-3)
SILENT = Training(log_every=None)


def run(toy, loss=classification_loss, **change):
    model = copy.deepcopy(toy[0])
    return model, prehab(model, loss, toy[1], toy[2], **(SETTINGS | change))


def moved(model, toy):
    return torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), toy[0].parameters(), strict=True)]).detach()


@pytest.mark.parametrize("surrogate", FAST)
def test_fast_trains_as_exact_does_and_has_the_same_control(surrogate, toy):
    changes = [{}, {"coordinates": "whitened"}, {"memory": Memory(roots_on="cpu")}, {"reduction": "mean", "lam": 0.5}]
    for change in changes:
        ours, fast_rows = run(toy, surrogate=Fast(surrogate), **change)
        theirs, exact_rows = run(toy, surrogate=surrogate, **change)
        assert cosine(moved(ours, toy), moved(theirs, toy)) > 0.9999, change
        for column in ("surrogate", "entropy_rank"):
            assert fast_rows.column(column) == pytest.approx(exact_rows.column(column), rel=1e-3), (change, column)
        control, same = (run(toy, **change | dict(surrogate=s, lam=0.0))[0] for s in (surrogate, Fast(surrogate)))
        assert cosine(moved(ours, toy), moved(control, toy)) < 0.999, "the surrogate is part of what is learnt"
        assert "coordinates" in change or torch.equal(moved(control, toy), moved(same, toy)), change


@pytest.mark.parametrize("surrogate", FAST)
def test_no_singular_value_decomposition_and_for_stable_rank_no_root(surrogate, toy, monkeypatch):
    for name in ("svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, lambda *_, **__: pytest.fail("a singular value decomposition"))
    if surrogate == "stable_rank":
        monkeypatch.setattr(rank_term, "psd_root", lambda *_: pytest.fail("a root"))
        monkeypatch.setattr(LayerStats, "gram_root", lambda *_: pytest.fail("a root"))
    _, history = run(toy, surrogate=Fast(surrogate), training=SILENT)
    assert history.column("entropy_rank") == [None] * 6 and history.column("fell_back") == [0] * 6


def test_layers_of_one_shape_go_together_and_no_result_depends_on_it(toy, monkeypatch):
    calls = []
    kind = FAST["nuclear"]
    monkeypatch.setattr(kind, "__call__", lambda self, W, was=kind.__call__: calls.append(W.shape) or was(self, W))
    together, _ = run(toy, steps=1)
    assert sorted(calls) == [(1, 4, 16), (2, 16, 12)]
    calls.clear()
    monkeypatch.setattr(fast_term, "STACK", 0)
    alone, _ = run(toy, steps=1)
    assert sorted(calls) == [(1, 4, 16), (1, 16, 12), (1, 16, 12)]
    torch.testing.assert_close(moved(together, toy), moved(alone, toy), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_between_refreshes_the_tangent_stands(coordinates, toy, monkeypatch):
    """Six steps at refresh 3: two decompositions; what is reported is the tangent, close to and not above the norm."""
    calls = []
    monkeypatch.setattr(tangents, "polar", lambda *a, was=tangents.polar: calls.append(0) or was(*a))
    more = dict(coordinates=coordinates, training=SILENT)
    ours, history = run(toy, surrogate=Fast("nuclear", refresh=3), **more)
    assert len(calls) == 2 * 2  # two shapes
    exact, rows = run(toy, surrogate="nuclear", **more)
    assert cosine(moved(ours, toy), moved(exact, toy)) > 0.999
    assert history.column("surrogate") == pytest.approx(rows.column("surrogate"), rel=1e-2)
    assert history.column("surrogate")[:2] != history.column("surrogate")[2:4]


def test_a_held_gradient_is_added_as_it_was(toy):
    """By hand: the second step's gradient is the task's there plus λ times the first step's nuclear gradient."""
    seen = []

    def spying(model, batch):
        seen.append([layer.weight.detach().clone() for layer in model.children()])
        return classification_loss(model, batch)

    run(toy, spying, surrogate=Fast("nuclear", refresh=2), steps=3, lam=1.0, lr=0.1)
    byhand = copy.deepcopy(toy[0])
    optimizer = torch.optim.AdamW([layer.weight for layer in byhand.children()], lr=0.1, weight_decay=0.0)
    held = {}
    for name, layer in byhand.named_children():
        L = toy[2][name].gram_root()
        U, _, Vt = torch.linalg.svd(layer.weight.detach().double() @ L, full_matrices=False)
        held[layer] = (U @ Vt @ L.T).float()
    for batch in toy[1][:2]:
        optimizer.zero_grad()
        classification_loss(byhand, batch).backward()
        for layer, D in held.items():
            layer.weight.grad += D
        optimizer.step()
    for ours, layer in zip(seen[2], byhand.children(), strict=True):
        torch.testing.assert_close(ours, layer.weight.detach(), rtol=1e-3, atol=1e-4)


def test_a_lambda_that_starts_late_finds_its_tangent(toy):
    """λ is 0 at the step that would have renewed it."""
    late = dict(lam=lambda step: 0.0 if step < 2 else 0.5, surrogate=Fast("nuclear", refresh=4))
    values = run(toy, **late, training=SILENT)[1].column("surrogate")
    assert values[:2] == [None, None] and all(value > 0 for value in values[2:])


def test_whitened_weights_are_made_once_a_step(toy, monkeypatch):
    """However often a step's loss runs the model: the round trip is one product a layer and step."""
    made = []
    forward = Whitened.forward
    monkeypatch.setattr(Whitened, "forward", lambda self, delta: made.append(0) or forward(self, delta))

    def twice(model, batch):
        return classification_loss(model, batch) + classification_loss(model, batch)

    run(toy, twice, coordinates="whitened", steps=0)
    outside = len(made)
    run(toy, twice, coordinates="whitened", steps=4, training=SILENT)
    assert len(made) - outside == outside + 4 * 3


def test_bad_options_are_named():
    refuses("fast surrogate = 'entropy_rank' is not known: choose one of stable_rank", Fast, "entropy_rank")
    refuses("refresh = 0", Fast, "nuclear", refresh=0)


def test_a_gram_that_is_none_is_refused_though_no_root_is_made(toy):
    for spoil, message in ((float("nan"), "NaN or infinite"), (0.0, "the input Gram of 'query' is zero")):
        stats = {name: LayerStats(gram=torch.full_like(s.gram, spoil)) for name, s in toy[2].items()}
        refuses(message, run, (toy[0], toy[1], stats), surrogate=Fast("stable_rank"))


def test_the_gradient_of_eq5_is_never_held():
    assert Fast.held("nuclear", 8) == Fast("nuclear", 8)
    assert Fast.held("nuclear_ratio", 8) == Fast("nuclear_ratio", 1)
