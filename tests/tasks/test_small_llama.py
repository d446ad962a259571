import copy
import dataclasses
import math

import pytest
import torch

from prehab_lib import surgery
from prehab_lib.prehab import prehab
from prehab_lib.stats import collect
from prehab_lib.tasks import small_llama as module
from prehab_lib.tasks.perplexity import language_loss, perplexity
from prehab_lib.tasks.small_llama import base_model, pretrain, small_llama
from prehab_lib.tasks.tokenizers import tokenizer_of
from tests.families import llama
from tests.stack import same
from tests.tasks.helpers import adamw_steps, opened_text, refuses
from tests.text_files import causal_model, tiny_tokenizer

SMALL = dict(depth=1, width=16, heads=2, kv_heads=1, positions=32)

pytestmark = pytest.mark.usefixtures("own_folders")


@pytest.fixture
def task(tmp_path):
    return opened_text(tmp_path, batch=4, rows=60)


def small(seed=0, **more):
    return small_llama(300, seed=seed, **SMALL | more)


def test_it_is_a_llama_with_grouped_queries_from_its_seed():
    state = torch.get_rng_state()
    model = small_llama(500)
    assert torch.equal(state, torch.get_rng_state())
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (64, 64) and attention.k_proj.weight.shape == (32, 64)
    assert type(model).__name__ == "LlamaForCausalLM" and model.lm_head.weight.shape == (500, 64)
    assert same(model, small_llama(500)) and not same(model, small_llama(500, seed=1))
    assert sum(p.numel() for p in small_llama(1000).parameters()) < 300_000


def test_training_learns_and_repeats_itself(task, monkeypatch):
    monkeypatch.setattr(module, "VALIDATE_EVERY", 30)
    one, other = small(), small()
    for model in (one, other):
        pretrain(model, task, seed=0, steps=60)
    assert same(one, other)
    scores, without = task.scores(one), task.unigram()
    assert all(scores[name] < 0.7 * without[name] for name in scores)
    assert all(p.grad is None for p in one.parameters())


def test_the_best_validation_is_kept_and_training_stops(task, monkeypatch):
    """The second validation is made the best; three worse ones follow, then nothing is trained any more."""
    values, seen = iter([5.0, 4.0, 4.5, 6.0, 7.0, 1.0]), []

    def validation(model, windows):
        seen.append(copy.deepcopy(model))
        return next(values)

    monkeypatch.setattr(module, "perplexity", validation)
    monkeypatch.setattr(module, "VALIDATE_EVERY", 2)
    model, taken = small(), adamw_steps(monkeypatch)
    pretrain(model, task, seed=0, steps=100)
    assert len(taken) == 10 and len(seen) == 5
    assert same(model, seen[1]) and not same(model, seen[-1])
    assert all(p.grad is None for p in model.parameters())
    values = iter([math.inf] * 3)  # none is better than nothing: the weights stay as they were trained
    pretrain(model, task, seed=0, steps=6)
    assert same(model, seen[-1])


def test_the_learning_rate_rises_then_falls_as_a_cosine(task, monkeypatch):
    monkeypatch.setattr(module, "WARMUP", 1)
    taken = adamw_steps(monkeypatch)
    pretrain(small(), task, seed=0, steps=4, lr=1e-2)
    cosine = [0.5 + 0.5 * math.cos(math.pi * i / 4) for i in range(4)]
    assert [step["lr"] for step in taken] == pytest.approx([0.5e-2 * cosine[0], *(1e-2 * c for c in cosine[1:])])


def test_bad_numbers_and_a_loss_that_explodes_are_named(task):
    refuses("steps = -1", pretrain, small(), task, seed=0, steps=-1)
    refuses("lr = 0", pretrain, small(), task, seed=0, steps=1, lr=0)
    model = small()
    torch.nn.init.constant_(model.lm_head.weight, 1e38)
    refuses("NaN or infinite|the loss is", pretrain, model, task, seed=0, steps=2)


def test_the_small_model_is_trained_once_then_cached(tmp_path, task, capfd):
    recipe = dict(seed=0, small=SMALL, steps=2)
    (first, how), (again, how_again) = (base_model(task, "small", **recipe) for _ in range(2))
    assert (how, how_again) == ("trained", "cached") and same(first, again) and not first.training
    for change in ({"seed": 1}, {"steps": 4}, {"small": SMALL | {"width": 24}}, {"small": SMALL | {"heads": 1}}):
        assert base_model(task, "small", **recipe | change)[1] == "trained", change
    chosen = dataclasses.replace(task.chosen_on, ids=task.chosen_on.ids.flip(0))
    fed = [dataclasses.replace(task, training=task.training.flip(0)), dataclasses.replace(task, chosen_on=chosen)]
    fed += [opened_text(tmp_path, task.tokenizer, batch=4, **change) for change in ({"rows": 50}, {"window": 20})]
    for other in fed:
        assert base_model(other, "small", **recipe)[1] == "trained"
    refuses("small has an unknown entry 'wdth'", base_model, task, "small", seed=0, small={"wdth": 8}, steps=1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_the_real_path_offline_from_checkpoint_to_surgery(tmp_path, family):
    folder = causal_model(tmp_path / "model", family, tokenizer=tiny_tokenizer())
    task = opened_text(tmp_path, tokenizer_of(folder), batch=4, rows=60)
    model, how = base_model(task, folder, seed=0)
    assert how == "given" and not model.training
    before = task.scores(model)
    assert all(200 < value < 450 for value in before.values())
    stats = collect(model, task.calibration(0, 8))
    prehab(model, language_loss, task.train(0, 2), stats, surrogate="nuclear", lam=0.1, steps=2, lr=1e-3)
    assert task.scores(model) != before
    report = surgery.compress(model, "svd_llm", 0.4, collect(model, task.calibration(0, 8)))
    assert report.achieved >= 0.4 and all(math.isfinite(value) for value in task.scores(model).values())


def test_half_precision_as_it_is_stored_or_as_asked(tmp_path, task):
    folder = causal_model(tmp_path / "model", dtype="bfloat16")
    stored, asked = base_model(task, folder, seed=0)[0], base_model(task, folder, seed=0, dtype="float32")[0]
    assert (stored.dtype, asked.dtype) == (torch.bfloat16, torch.float32)
    assert perplexity(asked, task.chosen_on) == pytest.approx(perplexity(stored, task.chosen_on), rel=0.05)


def test_a_compressed_checkpoint_and_one_that_is_not_there_are_named(tmp_path, task):
    model = llama()
    surgery.compress(model, "svd", 0.4)
    surgery.save(model, tmp_path / "compressed")
    surgery.save(model, tmp_path / "merged", merged=True)
    surgery.save(llama(vocab_size=300), tmp_path / "dense")
    assert base_model(task, str(tmp_path / "dense"), seed=0)[1] == "given"
    for name, error, said in (
        (str(tmp_path / "compressed"), ValueError, "compressed' is compressed already: give the dense model"),
        (str(tmp_path / "merged"), ValueError, "outside the model's vocabulary of 40"),  # and not "compressed already"
        (str(tmp_path / "nowhere"), FileNotFoundError, "nowhere' is no folder"),
        ("nobody/nothing", ConnectionError, "'nobody/nothing' could not be fetched"),
    ):
        refuses(said, base_model, task, name, seed=0, error=error)
