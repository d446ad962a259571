"""λ from a dose: by hand, and that measuring it leaves no trace."""

import copy

import pytest
import torch
from torch import nn

from prehab_lib import rank_term
from prehab_lib.evaluate import classification_loss
from prehab_lib.fast import Fast
from prehab_lib.prehab import Training, prehab
from prehab_lib.rivals.tail import Tail
from prehab_lib.statistics.dose import MEASURED
from prehab_lib.stats import collect
from prehab_lib.surrogates import SURROGATES
from tests.helpers import toy_batches
from tests.stack import refuses, same

SETTINGS = dict(surrogate="nuclear", steps=6, lr=1e-2)
PLANNED = Tail(ranks={"query": 3, "key": None, "head": 2}, refresh=2)


def run(toy, batches=None, **change):
    model = copy.deepcopy(toy[0])
    batches = toy[1] if batches is None else batches
    return model, prehab(model, classification_loss, batches, toy[2], **(SETTINGS | change))


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_lambda_is_the_dose_times_the_mean_norm_of_the_first_gradients_over_that_of_r(coordinates):
    """By hand for one layer, whose batches pull with different strength; a fifth one does not count."""
    layer = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    drawn = [(torch.randn(32, 6).double(), k * torch.randn(32, 5).double()) for k in (1, 2, 5, 3, 100)]

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    stats = collect(layer, drawn)
    L = stats["0"].gram_root(rank_term.FLOOR if coordinates == "whitened" else 0.0)
    W = layer[0].weight.detach().clone().requires_grad_()

    def pull(value):
        grad = torch.autograd.grad(value, W)[0]
        return float((grad @ torch.linalg.inv(L).T if coordinates == "whitened" else grad).norm())

    tasks = [pull((x @ W.T - y).square().mean()) for x, y in drawn[:MEASURED]]
    for name in ("nuclear", "stable_rank"):
        rank = pull(SURROGATES[name](W @ L))
        for surrogate, rel in ((name, 1e-6), (Fast(name, refresh=3), 1e-3)):
            settings = dict(surrogate=surrogate, lr=1e-3, coordinates=coordinates)
            history = prehab(copy.deepcopy(layer), loss, drawn, stats, dose=0.5, steps=5, **settings)
            lam = 0.5 * sum(tasks) / 4 / rank
            assert history.column("lam") == pytest.approx([lam] * 5, rel=rel), surrogate
            assert history.rows[0]["dose"] == pytest.approx(lam * rank / tasks[0], rel=rel), surrogate
            assert "dose" not in history.rows[1]
            short = prehab(copy.deepcopy(layer), loss, iter(drawn), stats, dose=0.5, steps=1, **settings)
            assert short.rows[0]["dose"] == pytest.approx(0.5, rel=rel), "it asked for more than its step"


def dropping(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
    batches = toy_batches(4, 30)
    return model, batches, collect(model, batches)


@pytest.mark.parametrize("change", [{}, {"coordinates": "whitened"}, {"reduction": "mean"}], ids=str)
@pytest.mark.parametrize(
    "surrogate", ["nuclear", "stable_rank", Fast("nuclear", refresh=4), Fast("nuclear"), "tail"], ids=str
)
def test_measuring_leaves_no_trace(surrogate, change):
    """The run is that of the λ it found, to the last bit: weights, running means, dropout and order of the batches."""
    toy = dropping()
    if surrogate == "tail":
        surrogate = Tail(ranks={"0": 3, "3": None}, refresh=2)
    for train in ("layers", "all"):
        more = dict(change, surrogate=surrogate, training=Training(train=train), steps=6)
        stream = iter([*toy[1], *toy[1]])  # it cannot start over
        ours, history = run(toy, stream, dose=0.7, **more)
        assert len(list(stream)) == 2, "batches were drawn that no step trained on"
        theirs, expected = run(toy, lam=history.rows[0]["lam"], **more)
        assert history.rows == expected.rows and same(ours, theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


def test_dose_zero_is_the_control(toy):
    (ours, history), (theirs, expected) = run(toy, dose=0), run(toy, lam=0.0)
    assert same(ours, theirs) and history.rows == expected.rows and history.rows[0]["dose"] == 0


def test_masters_of_bfloat16_are_measured(toy):
    half = copy.deepcopy(toy[0]).bfloat16()
    batches = [(x.bfloat16(), y) for x, y in toy[1]]
    full = run(toy, dose=1.0)[1].rows[0]
    found = run((half, batches, toy[2]), dose=1.0)[1].rows[0]
    assert found["lam"] == pytest.approx(full["lam"], rel=0.05)


def test_what_is_no_dose_is_named(toy):
    either = "prehab takes the weight of R as lam or as dose: give one of the two"
    cases = [(dict(dose=bad), f"dose = {bad!r}: give a finite number") for bad in (-1, float("nan"), "1", None)]
    cases += [({}, either), (dict(lam=0.0, dose=0.0), either), (dict(doses=1.0), "unknown entry 'doses'")]
    refuses(lambda **change: run(toy, **change), *cases)
    flat = copy.deepcopy(toy[0])

    def level(model, batch):
        return 0.0 * sum(layer.weight.sum() for layer in model.children())

    with pytest.raises(ValueError, match="no λ has dose = 1.0, ‖∇L‖ is 0 and ‖∇R‖ .* give lam in its place"):
        prehab(flat, level, toy[1], toy[2], dose=1.0, **SETTINGS)
    assert same(flat, toy[0]) and all(p.requires_grad and p.grad is None for p in flat.parameters())
