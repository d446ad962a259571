import copy

import pytest
import torch

from prehab_lib import fast, rank_term
from prehab_lib.evaluate import classification_loss
from prehab_lib.fast import FAST, fast_term
from prehab_lib.prehab import prehab
from prehab_lib.stats import LayerStats, collect
from tests.helpers import Toy, cosine, killed_after, toy_batches

SETTINGS = dict(surrogate="nuclear", lam=0.5, steps=6, lr=1e-3, arithmetic="fast")


@pytest.fixture
def toy():
    model, batches = Toy(), toy_batches()
    return model, batches, collect(model, batches)


def run(toy, loss=classification_loss, **change):
    model = copy.deepcopy(toy[0])
    return model, prehab(model, loss, toy[1], toy[2], **(SETTINGS | change))


def moved(model, toy):
    return torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), toy[0].parameters(), strict=True)]).detach()


@pytest.mark.parametrize("surrogate", FAST)
@pytest.mark.parametrize("change", [{}, {"coordinates": "whitened"}, {"roots_on": "cpu"}, {"reduction": "sum"}])
def test_fast_trains_as_exact_does(surrogate, change, toy):
    ours, fast_rows = run(toy, surrogate=surrogate, **change)
    theirs, exact_rows = run(toy, surrogate=surrogate, arithmetic="exact", **change)
    assert cosine(moved(ours, toy), moved(theirs, toy)) > 0.9999
    assert fast_rows.column("surrogate") == pytest.approx(exact_rows.column("surrogate"), rel=1e-3)
    assert fast_rows.column("entropy_rank") == pytest.approx(exact_rows.column("entropy_rank"), rel=1e-3)
    control, _ = run(toy, lam=0.0, **change)
    assert cosine(moved(ours, toy), moved(control, toy)) < 0.999, "the surrogate has to be part of what is learnt"


@pytest.mark.parametrize("surrogate", FAST)
def test_the_control_is_the_same_to_the_last_bit(surrogate, toy):
    ours, _ = run(toy, surrogate=surrogate, lam=0.0)
    theirs, _ = run(toy, surrogate=surrogate, lam=0.0, arithmetic="exact")
    assert torch.equal(moved(ours, toy), moved(theirs, toy))


@pytest.mark.parametrize("surrogate", FAST)
def test_no_singular_value_decomposition_and_for_stable_rank_no_root(surrogate, toy, monkeypatch):
    for name in ("svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, lambda *_, **__: pytest.fail("a singular value decomposition"))
    if surrogate == "stable_rank":
        monkeypatch.setattr(rank_term, "psd_root", lambda *_: pytest.fail("a root"))
        monkeypatch.setattr(LayerStats, "gram_root", lambda *_: pytest.fail("a root"))
    _, history = run(toy, surrogate=surrogate, log_every=None)
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
    monkeypatch.setattr(fast, "polar", lambda *a, was=fast.polar: calls.append(0) or was(*a))
    more = dict(coordinates=coordinates, refresh=3, log_every=None)
    ours, history = run(toy, **more)
    assert len(calls) == 2 * 2  # two shapes
    exact, rows = run(toy, arithmetic="exact", coordinates=coordinates, log_every=None)
    assert cosine(moved(ours, toy), moved(exact, toy)) > 0.999
    assert history.column("surrogate") == pytest.approx(rows.column("surrogate"), rel=1e-2)
    assert history.column("surrogate")[:2] != history.column("surrogate")[2:4]


def test_a_held_gradient_is_added_as_it_was(toy):
    """By hand: the second step's gradient is the task's there plus λ/3 of the first step's nuclear gradient."""
    seen = []

    def spying(model, batch):
        seen.append([layer.weight.detach().clone() for layer in model.children()])
        return classification_loss(model, batch)

    run(toy, spying, steps=3, refresh=2, lam=3.0, lr=0.1)
    byhand = copy.deepcopy(toy[0])
    optimizer = torch.optim.AdamW([layer.weight for layer in byhand.children()], lr=0.1, weight_decay=0.0)
    for step in range(2):
        optimizer.zero_grad()
        classification_loss(byhand, toy[1][step]).backward()
        if step == 0:
            roots = [toy[2][name].gram_root() for name, _ in byhand.named_children()]
            held = []
            for layer, L in zip(byhand.children(), roots, strict=True):
                U, _, Vt = torch.linalg.svd(layer.weight.detach().double() @ L, full_matrices=False)
                held.append((U @ Vt @ L.T).float())
        for layer, D in zip(byhand.children(), held, strict=True):
            layer.weight.grad += D
        optimizer.step()
    for ours, layer in zip(seen[2], byhand.children(), strict=True):
        torch.testing.assert_close(ours, layer.weight.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("surrogate", FAST)
@pytest.mark.parametrize("refresh", [1, 2])
def test_a_run_that_is_killed_goes_on_with_the_same_bits(surrogate, refresh, toy, tmp_path):
    more = dict(surrogate=surrogate, refresh=refresh, checkpoint_every=2, log_every=None)
    whole, history = run(toy, **more)
    file = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(toy, killed_after(5, classification_loss), checkpoint=file, **more)
    again, resumed = run(toy, checkpoint=file, **more)
    assert torch.equal(moved(whole, toy), moved(again, toy)) and resumed.rows == history.rows
    with pytest.raises(ValueError, match="belongs to other settings"):
        run(toy, checkpoint=file, **more | dict(refresh=refresh * 2, checkpoint_every=refresh * 2))


def test_a_lambda_that_starts_late_finds_its_tangent(toy):
    """λ is 0 at the step that would have renewed it."""
    _, history = run(toy, lam=lambda step: 0.0 if step < 2 else 0.5, refresh=4, log_every=None)
    assert history.column("surrogate")[:2] == [None, None] and all(v > 0 for v in history.column("surrogate")[2:])


def test_whitened_weights_are_made_once_a_step(toy, monkeypatch):
    """However often a step's loss runs the model: the round trip is one product a layer and step."""
    from prehab_lib.coordinates import Whitened

    made = []
    forward = Whitened.forward
    monkeypatch.setattr(Whitened, "forward", lambda self, delta: made.append(0) or forward(self, delta))

    def twice(model, batch):
        return classification_loss(model, batch) + classification_loss(model, batch)

    run(toy, twice, coordinates="whitened", steps=0)
    outside = len(made)
    run(toy, twice, coordinates="whitened", steps=4, log_every=None)
    assert len(made) - outside == outside + 4 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arithmetic": "quick"}, "arithmetic = 'quick' is not known: choose one of exact, fast"),
        ({"surrogate": "entropy_rank"}, "surrogate 'entropy_rank' has no fast arithmetic, only stable_rank"),
        ({"surrogate": "stable_rank", "power_iterations": 0}, "power_iterations = 0"),
        ({"power_iterations": 3}, "power_iterations are for the fast 'stable_rank' alone"),
        ({"refresh": 0}, "refresh = 0"),
        ({"arithmetic": "exact", "refresh": 2}, "refresh = 2 is for arithmetic='fast': leave it out"),
        ({"arithmetic": "exact", "power_iterations": 2}, "power_iterations = 2 is for arithmetic='fast'"),
        ({"refresh": 3, "checkpoint": "c"}, "checkpoint_every = 100 is no multiple of refresh = 3"),
    ],
)
def test_bad_options_are_named(change, message, toy):
    with pytest.raises(ValueError, match=message):
        run(toy, **change)


def test_a_gram_that_is_none_is_refused_though_no_root_is_made(toy):
    for spoil, message in ((float("nan"), "NaN or infinite"), (0.0, "the input Gram of a layer is zero")):
        stats = {name: LayerStats(gram=torch.full_like(s.gram, spoil)) for name, s in toy[2].items()}
        with pytest.raises(ValueError, match=message):
            run((toy[0], toy[1], stats), surrogate="stable_rank")
