import copy
import math
import warnings

import pytest
import torch
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.prehab import constant, geometric, prehab
from prehab_lib.stats import LayerStats, collect
from prehab_lib.surrogates import SURROGATES
from tests.helpers import Toy, killed_after, toy_batches

SETTINGS = dict(surrogate="nuclear", lam=0.1, steps=6, lr=1e-2)


@pytest.fixture
def toy():
    model, batches = Toy(), toy_batches()
    return model, batches, collect(model, batches)


def run(toy, model=None, **change):
    model = copy.deepcopy(toy[0]) if model is None else model
    return model, prehab(model, classification_loss, toy[1], toy[2], **(SETTINGS | change))


def rank_term(model, stats, surrogate="nuclear"):
    values = [
        SURROGATES[surrogate](layer.weight.double() @ stats[name].gram_root()) for name, layer in model.named_children()
    ]
    return float(torch.stack(values).mean().detach())


@pytest.mark.parametrize("surrogate", ["nuclear", "nuclear_ratio", "stable_rank"])
@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_the_surrogate_falls(surrogate, coordinates, toy):
    before = rank_term(toy[0], toy[2], surrogate)
    model, history = run(toy, surrogate=surrogate, lam=5.0, steps=25, coordinates=coordinates)
    assert rank_term(model, toy[2], surrogate) < before
    assert history.rows[0]["surrogate"] == pytest.approx(before, rel=1e-3)
    assert history.rows[-1]["surrogate"] < history.rows[0]["surrogate"]


def test_zero_lambda_is_plain_fine_tuning_of_the_same_parameters(toy):
    model, history = run(toy, lam=0.0)
    plain = copy.deepcopy(toy[0])
    optimizer = torch.optim.AdamW([layer.weight for layer in plain.children()], lr=1e-2, weight_decay=0.0)
    for batch in toy[1][:6]:
        optimizer.zero_grad()
        classification_loss(plain, batch).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert history.column("lam") == [0.0] * 6 and history.rows[-1]["surrogate"] > 0


def test_the_objective_is_equation_2(toy):
    """One plain step of the optimiser on loss + λ · mean of the surrogate, written out by hand."""
    model, _ = run(toy, steps=1, lam=0.3)
    byhand = copy.deepcopy(toy[0])
    optimizer = torch.optim.AdamW([layer.weight for layer in byhand.children()], lr=1e-2, weight_decay=0.0)
    rank = sum(
        SURROGATES["nuclear"](layer.weight.double() @ toy[2][name].gram_root())
        for name, layer in byhand.named_children()
    )
    (classification_loss(byhand, toy[1][0]) + 0.3 * rank / 3).backward()
    optimizer.step()
    for ours, theirs in zip(model.parameters(), byhand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_sum_over_layers_is_the_mean_with_lambda_times_their_number(toy):
    one, _ = run(toy, reduction="sum", lam=0.1)
    other, _ = run(toy, reduction="mean", lam=0.3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", ["layers", "all"])
@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_what_is_trained_and_what_is_left_alone(train, coordinates, toy):
    toy[0].query.bias.requires_grad_(False)
    model, _ = run(toy, train=train, coordinates=coordinates)
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, toy[0].get_parameter(name))
        assert moved == (train == "all" or name.endswith("weight")), name
        assert parameter.requires_grad == (name != "query.bias") and parameter.grad is None
    assert type(model.query) is nn.Linear and set(model.state_dict()) == set(toy[0].state_dict())


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_zero_steps_change_no_bit(coordinates, toy):
    model, history = run(toy, steps=0, coordinates=coordinates)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), toy[0].parameters(), strict=True))
    assert history.rows == []


def test_whitened_coordinates_survive_a_singular_gram_and_differ(toy):
    singular = {name: LayerStats(gram=s.gram.clone()) for name, s in toy[2].items()}
    for stats in singular.values():
        stats.gram[0], stats.gram[:, 0] = 0, 0
    white, _ = run((toy[0], toy[1], singular), coordinates="whitened", lr=1e-4)
    weight, _ = run((toy[0], toy[1], singular), coordinates="weight", lr=1e-4)
    assert all(torch.isfinite(p).all() for p in white.parameters())
    assert not torch.allclose(white.query.weight, weight.query.weight)


def test_a_gradient_step_in_whitened_coordinates_is_preconditioned_by_the_gram(toy):
    """First AdamW step is sign(gradient of Δ) · lr, so W moves by lr · sign(∇W L⁻ᵀ ...) L⁻¹: checked for λ = 0."""
    model, _ = run(toy, steps=1, lam=0.0, lr=1e-6, coordinates="whitened", floor=1e-12)
    plain = copy.deepcopy(toy[0])
    classification_loss(plain, toy[1][0]).backward()
    L = toy[2]["query"].gram_root(floor=1e-12).float()
    L_inverse = torch.linalg.inv(L)
    step = -1e-6 * torch.sign(plain.query.weight.grad @ L_inverse.T) @ L_inverse
    moved = model.query.weight - toy[0].query.weight
    torch.testing.assert_close(moved, step, rtol=0.05, atol=2e-7)


def test_history_has_a_row_a_step_and_logs_when_asked(toy):
    _, history = run(toy, steps=7, log_every=3)
    assert history.column("step") == list(range(7))
    assert [row["entropy_rank"] is not None for row in history.rows] == [True, False, False, True, False, False, True]
    assert all(math.isfinite(loss) for loss in history.column("task_loss")) and history.seconds > 0


def test_schedules():
    warmup = geometric(1e-4, 10.0, 10)
    assert [warmup(0), warmup(10), warmup(99)] == [pytest.approx(1e-4), 10.0, 10.0]
    assert warmup(4) / warmup(3) == pytest.approx(1e5**0.1)
    assert constant(0.1)(5) == 0.1


def test_a_schedule_is_followed(toy):
    _, history = run(toy, lam=geometric(0.01, 0.16, 4))
    assert history.column("lam") == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.16])


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_an_interrupted_run_resumes_to_the_same_bits(coordinates, toy, tmp_path):
    model = DropToy()
    stats = collect(model, toy[1], layers=["query", "key", "out"])
    whole, cut = copy.deepcopy(model), copy.deepcopy(model)
    more = SETTINGS | dict(steps=9, coordinates=coordinates, checkpoint_every=2)
    torch.manual_seed(3)
    prehab(whole, classification_loss, toy[1], stats, **more)

    torch.manual_seed(3)
    with pytest.raises(KeyboardInterrupt):
        prehab(cut, killed_after(5, classification_loss), toy[1], stats, checkpoint=tmp_path / "c.safetensors", **more)
    fresh = copy.deepcopy(model)
    torch.manual_seed(77)
    history = prehab(fresh, classification_loss, toy[1], stats, checkpoint=tmp_path / "c.safetensors", **more)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))
    assert history.column("step") == list(range(9))


class DropToy(Toy):
    def forward(self, x, attention_mask=None):
        h = torch.relu(self.query(x)) + torch.tanh(self.key(x))
        return self.out(nn.functional.dropout(h, 0.3, self.training))


def test_a_finished_checkpoint_is_not_trained_again(toy, tmp_path):
    path = tmp_path / "c.safetensors"
    first, _ = run(toy, checkpoint=path)

    def never(model, batch):
        raise AssertionError("trained again")

    again = copy.deepcopy(toy[0])
    prehab(again, never, toy[1], toy[2], checkpoint=path, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("change", [{"lam": 0.2}, {"lr": 1e-3}, {"coordinates": "whitened"}, {"steps": 9}])
def test_a_checkpoint_of_other_settings_is_refused(change, toy, tmp_path):
    run(toy, checkpoint=tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="belongs to other settings"):
        run(toy, checkpoint=tmp_path / "c.safetensors", **change)


def test_a_damaged_checkpoint_is_named(toy, tmp_path):
    (tmp_path / "c.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="checkpoint .* is damaged"):
        run(toy, checkpoint=tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": -0.1}, "lam = -0.1"),
        ({"lam": float("nan")}, "lam = nan"),
        ({"lam": "0.1"}, "lam = '0.1'"),
        ({"surrogate": "rank"}, "surrogate = 'rank' is not known"),
        ({"coordinates": "polar"}, "coordinates = 'polar' is not known: choose one of weight, whitened"),
        ({"train": "some"}, "train = 'some' is not known"),
        ({"reduction": "max"}, "reduction = 'max' is not known"),
        ({"steps": -1}, "steps = -1"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"log_every": 0}, "log_every = 0"),
        ({"lr": 1e30}, "the loss is (nan|inf) at prehab step .*lower lr"),
    ],
)
def test_bad_input_is_named_and_flags_are_restored(change, message, toy):
    model = copy.deepcopy(toy[0])
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        run(toy, model, **change)
    assert all(p.requires_grad for p in model.parameters()) and type(model.query) is nn.Linear


def test_batches_that_run_out_are_named(toy):
    with pytest.raises(ValueError, match="batches ran out"):
        prehab(toy[0], classification_loss, iter(toy[1][:2]), toy[2], **SETTINGS)


def test_a_zero_gram_is_refused(toy):
    zero = {name: LayerStats(gram=torch.zeros_like(s.gram)) for name, s in toy[2].items()}
    with pytest.raises(ValueError, match="input Gram of a layer is zero"):
        run((toy[0], toy[1], zero))


@pytest.mark.parametrize("other", ["weights", "statistics", "a frozen parameter"])
@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_a_checkpoint_of_another_start_is_refused(other, coordinates, toy, tmp_path):
    run(toy, checkpoint=tmp_path / "c.safetensors", coordinates=coordinates)
    model, stats = copy.deepcopy(toy[0]), toy[2]
    with torch.no_grad():
        if other == "weights":
            model.query.weight.neg_()
        elif other == "statistics":
            stats = {name: LayerStats(gram=2 * s.gram) for name, s in stats.items()}
        else:
            model.query.bias.add_(1)
    with pytest.raises(ValueError, match="belongs to other settings or weights"):
        run((toy[0], toy[1], stats), model, checkpoint=tmp_path / "c.safetensors", coordinates=coordinates)


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(toy, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="checkpoint .* could not be written: .*is there space left"):
        run(toy, checkpoint=tmp_path / "file" / "c.safetensors")


def test_half_precision_and_missing_statistics_are_refused(toy):
    with pytest.raises(ValueError, match="in float16.*train in bfloat16 or float32"):
        run(toy, toy[0].half())
    with pytest.raises(ValueError, match="needs the statistic 'gram'"):
        run((Toy(), toy[1], None))
    with pytest.raises(ValueError, match="lam = -1"):
        run((Toy(), toy[1], toy[2]), lam=lambda step: -1.0)


def test_modules_keep_their_own_mode(toy):
    toy[0].train()
    toy[0].key.eval()
    model, _ = run(toy)
    assert model.training and not model.key.training and model.query.training


def test_arms_in_sequence_drop_alike_and_the_random_state_stays():
    def arm(seed):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.Linear(16, 4))
        torch.manual_seed(len(arms))  # what ran before
        state = torch.get_rng_state()
        stats = collect(model, toy_batches(4, 30))
        settings = dict(surrogate="nuclear", lam=0.0, steps=3, lr=1e-2, seed=seed)
        arms.append(prehab(model, classification_loss, toy_batches(4, 30), stats, **settings).column("task_loss"))
        assert torch.equal(state, torch.get_rng_state())

    arms = []
    for seed in (0, 0, 1):
        arm(seed)
    assert arms[0] == arms[1] != arms[2]
