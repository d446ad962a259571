import copy
from functools import partial

import pytest
import torch

from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.rehab import Lora, rehab
from prehab_lib.surgery import compress
from prehab_lib.tasks.perplexity import language_loss
from tests.families import llama
from tests.helpers import Toy, killed_after, toy_batches
from tests.stack import refuses

SETTINGS = dict(rank=2, steps=15, lr=1e-2)


@pytest.fixture
def compressed():
    model = Toy(n=24, m=32, classes=20)
    compress(model, "svd", 0.6)
    return model, toy_batches(n=24, classes=20)


def loss_of(model, batches):
    with torch.no_grad():
        return sum(float(classification_loss(model.eval(), batch)) for batch in batches)


@pytest.mark.parametrize(("order", "phases"), [("UV", ["U", "V"]), ("VU", ["V", "U"]), ("joint", ["UV"])])
def test_rehab_lowers_the_loss_and_no_rank_grows(order, phases, compressed):
    model, batches = compressed
    before, shapes = loss_of(model, batches), {name: p.shape for name, p in model.named_parameters()}
    history = rehab(model, classification_loss, batches, order=order, **SETTINGS)
    assert loss_of(model, batches) < before
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert all(type(model.get_submodule(name)) is LowRankLinear for name in ("query", "key", "out"))
    assert [row["phase"] for row in history.rows] == [phase for phase in phases for _ in range(15)]


@pytest.mark.parametrize(("order", "moved"), [("UV", "U"), ("VU", "V")])
def test_one_factor_at_a_time(order, moved, compressed):
    """Stopped inside the second phase, only the first factor has changed."""
    model, batches = compressed
    before = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        rehab(model, killed_after(15, classification_loss), batches, order=order, **SETTINGS)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    assert changed == {f"{name}.{moved}.weight" for name in ("query", "key", "out")}
    assert {name for name, _ in model.named_modules()} == {name for name, _ in before.named_modules()}


def test_the_step_is_low_rank_flags_and_mode_come_back(compressed):
    model, batches = compressed
    model.key.U.weight.requires_grad_(False)
    model.eval()
    before = model.query.U.weight.clone()
    rehab(model, classification_loss, batches, rank=1, steps=10, lr=1e-2)
    assert int(torch.linalg.matrix_rank(model.query.U.weight - before, tol=1e-5)) == 1
    assert not model.key.U.weight.requires_grad and model.query.U.weight.requires_grad and not model.training
    before = copy.deepcopy(model)
    rehab(model, classification_loss, batches, rank=2, steps=0, lr=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_bad_input_is_named_and_no_adapter_is_left(compressed):
    model, batches = compressed
    names = {name for name, _ in model.named_modules()}
    cases = {
        "order = 'VV' is not known: choose one of UV, VU, joint": {"order": "VV"},
        "rank = 0": {"rank": 0},
        "steps = -1": {"steps": -1},
        "lr = nan": {"lr": float("nan")},
        "the loss is (nan|inf) at rehab step": {"lr": 1e30},
    }
    call = partial(rehab, model=model, task_loss=classification_loss, batches=batches, **SETTINGS)
    for message, change in cases.items():
        refuses(call, (change, message))
        assert {name for name, _ in model.named_modules()} == names, message
        assert all(p.requires_grad for p in model.parameters()), message
    refuses(Lora, ({"warmup": -1}, "warmup = -1"), ({"accumulate": 0}, "accumulate = 0"))
    dense, half = {"model": Toy()}, {"model": copy.deepcopy(model).half()}
    refuses(call, (dense, "needs a compressed model"), (half, "is in float16, in which AdamW's steps overflow"))


def test_the_learning_rate_rises_and_falls_linearly_in_each_phase(compressed, monkeypatch):
    model, batches = compressed
    rates, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    rehab(model, classification_loss, batches, rank=2, steps=6, lr=1e-3, lora=Lora(warmup=2, decay=True))
    assert rates == pytest.approx(2 * [1e-3 / 3, 2e-3 / 3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    rates.clear()
    more = dict(order="joint", lora=Lora(alpha=16, dropout=0.05))
    rehab(model, classification_loss, batches, rank=2, steps=3, lr=1e-3, **more)
    assert rates == pytest.approx([1e-3] * 3)


def test_accumulated_batches_step_as_one_large_one():
    """Two halves a step, or the whole batch: the same loss and, up to rounding, the same factors."""
    models = [Toy(n=24, m=32, classes=20).double() for _ in range(2)]
    whole = [(x.double(), y) for x, y in toy_batches(n=24, classes=20)]
    halves = [(x[part], y[part]) for x, y in whole for part in (slice(0, 16), slice(16, 32))]
    histories = []
    for model, batches, accumulate in zip(models, (whole, halves), (1, 2), strict=True):
        compress(model, "svd", 0.6)
        torch.manual_seed(0)  # the adapters start at random
        more = dict(rank=2, steps=4, lr=1e-3, lora=Lora(accumulate=accumulate))
        histories.append(rehab(model, classification_loss, batches, **more))
    assert len(histories[0].rows) == len(histories[1].rows) == 8
    assert histories[0].column("task_loss") == pytest.approx(histories[1].column("task_loss"))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_a_bfloat16_model_gains_what_its_float32_copy_gains():
    """Steps of 1e-5 and products of adapters vanish in bfloat16's 8 bits; in float32 masters, rounded once, they do not."""
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(40, (8, 16), generator=generator)}]
    model = llama()
    compress(model, "svd", 0.4)
    half = model.to(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    seen, gains = set(), []

    def watched(model, batch):
        seen.update(p.dtype for name, p in model.named_parameters() if "lora_" in name)
        return language_loss(model, batch)

    for one in (exact, half):
        before = copy.deepcopy(one).float().eval()
        torch.manual_seed(1)  # the adapters start at random
        rehab(one, watched, batches, rank=4, steps=50, lr=1e-4)
        after = copy.deepcopy(one).float().eval()
        with torch.no_grad():
            gains.append(float(language_loss(before, batches[0]) - language_loss(after, batches[0])))
    assert gains[1] == pytest.approx(gains[0], rel=0.1) and gains[0] > 0
    assert seen == {torch.float32} and {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_masters_are_given_back_where_training_fails(compressed):
    half, batches = compressed[0].to(torch.bfloat16), compressed[1]
    before = copy.deepcopy(half)
    with pytest.raises(KeyboardInterrupt):
        rehab(half, killed_after(0, classification_loss), batches, **SETTINGS)
    for (name, ours), theirs in zip(half.named_parameters(), before.parameters(), strict=True):
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs), name
