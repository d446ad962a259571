import copy

import pytest
import torch

from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.rehab import rehab
from prehab_lib.surgery import compress
from tests.helpers import Toy, toy_batches

SETTINGS = dict(rank=2, steps=15, lr=1e-2)


@pytest.fixture
def compressed():
    model = Toy(n=24, m=32, classes=20)
    compress(model, "svd", 0.6)
    return model, toy_batches(n=24, classes=20)


def loss_of(model, batches):
    with torch.no_grad():
        return sum(float(classification_loss(model.eval(), batch)) for batch in batches)


@pytest.mark.parametrize("order", ["UV", "VU", "joint"])
def test_rehab_lowers_the_loss_and_no_rank_grows(order, compressed):
    model, batches = compressed
    before, shapes = loss_of(model, batches), {name: p.shape for name, p in model.named_parameters()}
    history = rehab(model, classification_loss, batches, order=order, **SETTINGS)
    assert loss_of(model, batches) < before
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert all(type(model.get_submodule(name)) is LowRankLinear for name in ("query", "key", "out"))
    phases = {"UV": ["U", "V"], "VU": ["V", "U"], "joint": ["UV"]}[order]
    assert [row["phase"] for row in history.rows] == [phase for phase in phases for _ in range(15)]


@pytest.mark.parametrize(("order", "moved"), [("UV", "U"), ("VU", "V")])
def test_one_factor_at_a_time(order, moved, compressed):
    """Stopped inside the second phase, only the first factor has changed."""
    model, batches = compressed
    before = copy.deepcopy(model)
    calls = []

    def stop_in_second_phase(model, batch):
        calls.append(1)
        if len(calls) > 15:
            raise KeyboardInterrupt
        return classification_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        rehab(model, stop_in_second_phase, batches, order=order, **SETTINGS)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert changed == {f"{name}.{moved}.weight" for name in ("query", "key", "out")}
    assert {name for name, _ in model.named_modules()} == {name for name, _ in before.named_modules()}


def test_the_step_is_low_rank(compressed):
    model, batches = compressed
    before = model.query.U.weight.clone()
    rehab(model, classification_loss, batches, rank=1, steps=10, lr=1e-2)
    assert int(torch.linalg.matrix_rank(model.query.U.weight - before, tol=1e-5)) == 1


def test_flags_and_mode_come_back(compressed):
    model, batches = compressed
    model.key.U.weight.requires_grad_(False)
    model.eval()
    rehab(model, classification_loss, batches, **SETTINGS)
    assert not model.key.U.weight.requires_grad and model.query.U.weight.requires_grad and not model.training


def test_zero_steps_change_nothing(compressed):
    model, batches = compressed
    before = copy.deepcopy(model)
    rehab(model, classification_loss, batches, rank=2, steps=0, lr=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": "VV"}, "order = 'VV' is not known: choose one of UV, VU, joint"),
        ({"rank": 0}, "rank = 0"),
        ({"steps": -1}, "steps = -1"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"lr": 1e30}, "the loss is (nan|inf) at rehab step"),
    ],
)
def test_bad_input_is_named_and_no_adapter_is_left(change, message, compressed):
    model, batches = compressed
    names = {name for name, _ in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        rehab(model, classification_loss, batches, **(SETTINGS | change))
    assert {name for name, _ in model.named_modules()} == names
    assert all(p.requires_grad for p in model.parameters())


def test_a_dense_model_is_refused():
    with pytest.raises(ValueError, match="rehab needs a compressed model"):
        rehab(Toy(), classification_loss, toy_batches(), **SETTINGS)
