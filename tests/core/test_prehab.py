import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from prehab_lib import rank_term
from prehab_lib.evaluate import classification_loss
from prehab_lib.precision import Memory
from prehab_lib.prehab import Training, constant, geometric, prehab
from prehab_lib.stats import LayerStats, collect
from prehab_lib.surrogates import SURROGATES
from tests.helpers import toy_batches
from tests.stack import refuses, same

SETTINGS = dict(surrogate="nuclear", lam=0.1, steps=6, lr=1e-2)
COORDINATES = ("weight", "whitened")


def run(toy, model=None, **change):
    model = copy.deepcopy(toy[0]) if model is None else model
    return model, prehab(model, classification_loss, toy[1], toy[2], **(SETTINGS | change))


def surrogates_of(model, stats, surrogate="nuclear"):
    """R of each layer, with its graph."""
    layers = model.named_children()
    return [SURROGATES[surrogate](layer.weight.double() @ stats[name].gram_root()) for name, layer in layers]


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_the_surrogate_falls(coordinates, toy):
    for surrogate in ("nuclear", "nuclear_ratio", "stable_rank"):
        before = float(sum(surrogates_of(toy[0], toy[2], surrogate)).detach())
        model, history = run(toy, surrogate=surrogate, lam=2.0, steps=25, coordinates=coordinates)
        assert float(sum(surrogates_of(model, toy[2], surrogate)).detach()) < before, surrogate
        assert history.rows[0]["surrogate"] == pytest.approx(before, rel=1e-3), surrogate
        assert history.rows[-1]["surrogate"] < history.rows[0]["surrogate"], surrogate


def plain_steps(toy, count, penalty=lambda model: 0.0):
    """A copy after so many steps of AdamW on the three weights, written out by hand."""
    plain = copy.deepcopy(toy[0])
    optimizer = torch.optim.AdamW([layer.weight for layer in plain.children()], lr=1e-2, weight_decay=0.0)
    for batch in toy[1][:count]:
        optimizer.zero_grad()
        (classification_loss(plain, batch) + penalty(plain)).backward()
        optimizer.step()
    return plain


def test_zero_lambda_is_plain_fine_tuning_of_the_same_parameters(toy):
    model, history = run(toy, lam=0.0)
    assert same(model, plain_steps(toy, 6))
    assert history.column("lam") == [0.0] * 6 and history.rows[-1]["surrogate"] > 0


def test_the_objective_is_equation_2(toy):
    """One plain step of the optimiser on loss + λ · sum of the surrogate, written out by hand."""
    model, _ = run(toy, steps=1, lam=0.3)
    by_hand = plain_steps(toy, 1, lambda plain: 0.3 * sum(surrogates_of(plain, toy[2])))
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_sum_over_layers_is_the_mean_with_lambda_times_their_number(coordinates, toy):
    summed, history = run(toy, lam=0.1, coordinates=coordinates)
    averaged, other = run(toy, reduction="mean", lam=0.3, coordinates=coordinates)
    for a, b in zip(summed.parameters(), averaged.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert history.rows[0]["surrogate"] == pytest.approx(3 * other.rows[0]["surrogate"])
    assert history.rows[0]["entropy_rank"] == pytest.approx(other.rows[0]["entropy_rank"])


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_gradients_of_the_term_are_those_of_its_value(coordinates, toy):
    """Both ways of `backward`, one graph and layer after layer, against central differences of `value`."""
    model = toy[0].double()
    term = rank_term.term_of("nuclear", model, toy[2], coordinates, "sum", Memory())
    term.backward(0.0 * model.query.weight.sum(), 0.7)
    generator = torch.Generator().manual_seed(0)
    for layer in model.children():
        direction = torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator)
        at = []
        for step in (1e-6, -1e-6):
            layer.weight.data += step * direction
            at.append(float(term.value()))
            layer.weight.data -= step * direction
        slope = float((layer.weight.grad * direction).sum())
        assert slope == pytest.approx(0.7 * (at[0] - at[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("train", ["layers", "all"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_what_is_trained_and_what_is_left_alone(train, coordinates, toy):
    toy[0].query.bias.requires_grad_(False)
    toy[0].train().key.eval()
    model, _ = run(toy, training=Training(train=train), coordinates=coordinates)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, toy[0].get_parameter(name))
        assert moved == (train == "all" or name.endswith("weight")), name
        assert parameter.requires_grad == (name != "query.bias") and parameter.grad is None
    assert model.training and not model.key.training and model.query.training
    assert type(model.query) is nn.Linear and set(model.state_dict()) == set(toy[0].state_dict())
    untouched, history = run(toy, steps=0, training=Training(train=train), coordinates=coordinates)
    assert same(untouched, toy[0]) and history.rows == []


def test_a_gradient_step_in_whitened_coordinates_is_preconditioned_by_the_gram(toy):
    """The first step of AdamW is sign(gradient of Δ) · lr, so W moves by lr · sign(∇W L⁻ᵀ) L⁻¹."""
    model, _ = run(toy, steps=1, lam=0.0, lr=1e-6, coordinates="whitened")
    plain = copy.deepcopy(toy[0])
    classification_loss(plain, toy[1][0]).backward()
    L = toy[2]["query"].gram_root(floor=rank_term.FLOOR).float()
    L_inverse = torch.linalg.inv(L)
    step = -1e-6 * torch.sign(plain.query.weight.grad @ L_inverse.T) @ L_inverse
    moved = model.query.weight - toy[0].query.weight
    torch.testing.assert_close(moved, step, rtol=0.05, atol=2e-7)


def test_history_has_a_row_a_step_and_logs_when_asked(toy):
    _, history = run(toy, steps=7, training=Training(log_every=3))
    assert history.column("step") == list(range(7))
    logged = [True, False, False, True, False, False, True]
    for column in ("surrogate", "entropy_rank"):
        assert [value is not None for value in history.column(column)] == logged, column
    assert all(math.isfinite(loss) for loss in history.column("task_loss")) and history.seconds > 0
    _, history = run(toy, lam=lambda step: 0.1 * (step > 2), training=Training(log_every=None))
    assert [value is not None for value in history.column("surrogate")] == [False] * 3 + [True] * 3
    assert history.column("entropy_rank") == [None] * 6


def test_schedules(toy):
    warmup = geometric(1e-4, 10.0, 10)
    assert [warmup(0), warmup(10), warmup(99)] == [pytest.approx(1e-4), 10.0, 10.0]
    assert warmup(4) / warmup(3) == pytest.approx(1e5**0.1)
    assert constant(0.1)(5) == 0.1
    _, history = run(toy, lam=geometric(0.01, 0.16, 4))
    assert history.column("lam") == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.16])


def test_bad_input_is_named_and_flags_are_restored(toy):
    cases = [
        *((dict(lam=lam), f"lam = {lam!r}") for lam in (-0.1, float("nan"), "0.1")),
        (dict(lam=lambda step: -1.0), "lam = -1"),
        (dict(surrogate="rank"), "surrogate = 'rank' is not known"),
        (dict(coordinates="polar"), "coordinates = 'polar' is not known: choose one of weight, whitened"),
        (dict(reduction="max"), "reduction = 'max' is not known"),
        *((dict(steps=-1), "steps = -1"), (dict(lr=0.0), "lr = 0.0")),
        (dict(steps=10**30), "steps = 1000.*: give a whole number, 2147483647 at most"),
        (dict(lr=float("inf")), "lr = inf"),
        (dict(lr=1e39), "lr = 1e.39"),
        (dict(lr=1e30), "the loss is (nan|inf) at prehab step .*lower lr"),
    ]
    for change, message in cases:
        model = copy.deepcopy(toy[0])
        refuses(partial(run, toy, model), (change, message))
        assert all(p.requires_grad for p in model.parameters()) and type(model.query) is nn.Linear, change
    steep = partial(prehab, copy.deepcopy(toy[0]), lambda model, batch: (model.query.weight * 0).sum().sqrt(), *toy[1:])
    refuses(steep, (SETTINGS | dict(steps=1), "weights are not finite after the last step: lower lr"))
    refuses(Training, (dict(train="some"), "train = 'some' is not known"), (dict(log_every=0), "log_every = 0"))
    for bad in (10**30, -1, 0.5, True):
        refuses(Training, (dict(seed=bad), f"seed = {bad!r}: give a whole number, "))
    for bad in (float("nan"), float("inf"), -0.1):
        refuses(Training, (dict(weight_decay=bad), f"weight_decay = {bad!r}: give a positive"))


def test_what_cannot_be_trained_is_refused(toy):
    model, batches, stats = toy
    zero = {name: LayerStats(gram=torch.zeros_like(s.gram)) for name, s in stats.items()}
    cases = {
        "batches ran out": (model, iter(batches[:2]), stats),
        "input Gram of 'query' is zero": (model, batches, zero),
        "in float16.*train in bfloat16 or float32": (copy.deepcopy(model).half(), batches, stats),
        "needs the statistic 'gram'": (model, batches, None),
    }
    refuses(run, *(({"toy": case}, message) for message, case in cases.items()))


def test_arms_in_sequence_drop_alike_and_the_random_state_stays():
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 4))
        torch.manual_seed(len(losses))  # what ran before
        state = torch.get_rng_state()
        toy = model, toy_batches(4, 30), collect(model, toy_batches(4, 30))
        _, history = run(toy, model, lam=0.0, steps=3, training=Training(seed=seed))
        losses.append(history.column("task_loss"))
        assert torch.equal(state, torch.get_rng_state())
    assert losses[0] == losses[1] != losses[2]


def test_a_bad_schedule_is_found_before_the_weights_move(toy):
    model = copy.deepcopy(toy[0])
    with pytest.raises(ValueError, match="lam = nan"):
        run(toy, model, lam=lambda step: 0.1 if step < 3 else float("nan"))
    assert same(model, toy[0])
