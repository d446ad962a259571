"""Models, layers and data that others prepared: cut and trained right, or refused in one sentence."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import parametrizations, prune

from prehab_lib import surgery
from prehab_lib.batches import device_of
from prehab_lib.evaluate import accuracy, classification_loss
from prehab_lib.layers import default_layers
from prehab_lib.prehab import geometric, prehab
from prehab_lib.rehab import Lora, rehab
from prehab_lib.rivals.decomposable import Decomposable
from prehab_lib.save.rewrite import dense_weight
from prehab_lib.scale import stream
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose, decompose_all, error
from tests.families import IDS, tiny
from tests.helpers import Toy, toy_batches

BATCHES = toy_batches(4)
STATS = collect(Toy(), BATCHES)
SETTINGS = dict(surrogate="nuclear", lam=1e-3, steps=2, lr=1e-3)


def cut(**options) -> Toy:
    model = Toy()
    compress(model, "svd_llm", 0.4, STATS, **options)
    return model


def trained(model=None, loss=classification_loss, batches=BATCHES, **options):
    model = model or Toy()
    return prehab(model, loss, batches, options.pop("stats", STATS), **SETTINGS | options)


def with_(change) -> Toy:
    model = Toy()
    change(model.query)
    return model


NORMED = [parametrizations.weight_norm, nn.utils.spectral_norm]
NORMED += [lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]


@pytest.mark.parametrize("change", NORMED, ids=["weight_norm", "spectral_norm", "prune"])
def test_a_layer_whose_weight_is_made_of_others_is_refused_and_stays_as_it_is(change):
    model = with_(change)
    before = list(model.state_dict())
    for act in (
        lambda: trained(model),
        lambda: trained(model, coordinates="whitened", lam=0),
        lambda: collect(model, BATCHES, needs={"fisher_in"}, task_loss=classification_loss),
    ):
        with pytest.raises(ValueError, match="'query' is parametrised"):
            act()
    assert list(model.state_dict()) == before


def test_wrappers_hide_no_family_and_what_was_cut_or_adapted_is_no_layer():
    bert = tiny("bert")
    inner = default_layers(bert)
    wrapped = nn.ModuleDict({"inner": bert, "own": nn.Linear(4, 4)})
    compiled = torch.compile(bert, backend="eager")
    assert default_layers(nn.DataParallel(bert)) == [f"module.{name}" for name in inner]
    assert default_layers(compiled) == [f"_orig_mod.{name}" for name in inner]
    assert default_layers(wrapped) == [f"inner.{name}" for name in inner] + ["own"]
    assert list(compress(compiled, "svd", 0.4).ranks) == [f"_orig_mod.{name}" for name in inner]
    with pytest.raises(ValueError, match="inside torch.compile"):
        surgery.save(compiled, "nowhere")
    for model in (cut(), bert):
        with pytest.raises(ValueError, match="compressed already"):
            default_layers(model)
    adapted = get_peft_model(tiny("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"has adapters: call merge_and_unload\(\)"):
        compress(adapted, "svd", 0.4)


def test_surgery_refuses_hooks_another_ruler_and_one_bare_layer_and_is_undone_by_ctrl_c(monkeypatch):
    hooked = with_(lambda layer: layer.register_forward_hook(lambda module, x, out: 2 * out))
    with pytest.raises(ValueError, match="'query' has hooks"):
        compress(hooked, "svd", 0.4)
    with pytest.raises(ValueError, match="is by 'identity', the method's ruler is 'gram'"):
        cut(decompositions=decompose_all(Toy(), STATS, "identity"))
    with pytest.raises(ValueError, match="the model is one layer"):
        compress(nn.Linear(8, 8), "svd", 0.4)
    replace, calls = surgery.replace_module, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(surgery, "replace_module", stopped)
    model = Toy()
    with pytest.raises(KeyboardInterrupt):
        compress(model, "svd_llm", 0.4, STATS)
    assert all(type(layer) is nn.Linear for layer in model.children())


def test_nothing_trains_under_the_callers_autocast():
    """It kept the casts of the first step: LoRA then left every factor as it was, and said nothing."""
    model, batches = Toy(), toy_batches()
    stats = collect(model, batches)
    for compressed in (False, True):
        if compressed:
            compress(model, "svd_llm", 0.4, stats)
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="under torch.autocast"):
            if compressed:
                rehab(model, classification_loss, batches, rank=2, steps=2, lr=1e-2)
            else:
                prehab(model, classification_loss, batches, stats, surrogate="nuclear", lam=0.1, steps=2, lr=1e-2)


def test_what_was_cut_in_inference_mode_trains_later_and_nothing_trains_in_it():
    with torch.inference_mode():
        model = cut()
        for act in (trained, lambda: rehab(model, classification_loss, BATCHES, rank=2, steps=1, lr=1e-3)):
            with pytest.raises(ValueError, match="inference_mode"):
                act()
    with torch.no_grad():
        assert len(trained().rows) == 2
        rehab(model, classification_loss, BATCHES, rank=2, steps=1, lr=1e-3)


def test_directions_that_the_data_do_not_show_are_not_trained_in_whitened_coordinates():
    silent = [(x * (torch.arange(12) < 6), y) for x, y in BATCHES]
    model = Toy()
    before = model.query.weight.detach().clone()
    trained(model, batches=silent, stats=collect(model, silent), coordinates="whitened", steps=5)
    moved = (model.query.weight - before).abs()
    assert moved[:, :6].max() > 1e-3 and moved[:, 6:].max() < 1e-6


def test_running_statistics_stay_and_rehab_repeats_itself():
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()

    model = net()
    trained(model, stats=collect(model, BATCHES))
    compress(model, "svd_llm", 0.4, collect(model, BATCHES))
    rehab(model, classification_loss, BATCHES, rank=2, steps=2, lr=1e-3)
    assert not model[1].running_mean.any()
    one, other = cut(), cut()
    for seed, model in enumerate((one, other)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        rehab(model, classification_loss, BATCHES, rank=2, steps=2, lr=1e-3)
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.query.weight, other.query.weight)


def test_accuracy_counts_every_answer_and_no_other():
    x, y = BATCHES[0]
    model, half = Toy(), y.clone()
    half[:16] = -100
    assert accuracy(model, [(x, half)]) == accuracy(model, [(x[16:], y[16:])])
    tokens = x.reshape(4, 8, 12)
    assert accuracy(model, [(tokens, model(tokens).argmax(-1))]) == 100
    answers = type("Answers", (Toy,), {"forward": lambda self, x: (Toy.forward(self, x),)})()
    for says, act in {
        "one label an answer": lambda: accuracy(model, [(x, y[:, None])]),
        "all labels are ignored": lambda: accuracy(model, [(x, y * 0 - 100)]),
        "not a tuple": lambda: accuracy(answers, BATCHES),
        "labels go from .* of 4 classes": lambda: classification_loss(model, (x, y + 10)),
        'no tensor "labels"': lambda: accuracy(model, [{"x": x, "label": y}]),
        "holds two tensors": lambda: accuracy(model, [(x, None)]),
    }.items():
        with pytest.raises(ValueError, match=says):
            act()


def test_autocast_around_changes_no_arithmetic_of_our_own():
    plain = cut(dtype=torch.float32)
    gram = collect(Toy(), BATCHES, dtype=torch.float32)["query"].gram
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(collect(Toy(), BATCHES, dtype=torch.float32)["query"].gram, gram)
        assert torch.equal(cut(dtype=torch.float32).query.U.weight, plain.query.U.weight)
        inside = dense_weight(plain.query)
    assert torch.equal(inside, dense_weight(plain.query))


def test_a_forward_of_the_user_s_own_on_a_block_is_called_and_comes_back():
    model = tiny("llama")
    block = model.model.layers[0]
    old = block.forward

    def own(*args, **kwargs):
        out = old(*args, **kwargs)
        return 3 * out if torch.is_tensor(out) else (3 * out[0], *out[1:])

    block.forward = own
    whole, streamed = (run(model, [dict(input_ids=IDS)]) for run in (collect, stream.collect))
    assert vars(block)["forward"] is own
    assert all(torch.allclose(whole[name].gram, streamed[name].gram) for name in whole)


def per_sample(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


GRAM = copy.copy(STATS["query"])
GRAM.gram, GRAM.derived = -GRAM.gram, {}
WRONG = {
    "must return one number": lambda: trained(loss=per_sample),
    "does not depend on the weights": lambda: rehab(cut(), lambda *_: 1.0, BATCHES, rank=2, steps=1, lr=1e-3),
    "of another width": lambda: trained(Toy(n=20)),
    "alpha = 0": lambda: Lora(alpha=0),
    "dropout = 1.0": lambda: Lora(dropout=1.0),
    "start = 0": lambda: geometric(0, 1e-3, 2),
    "dtype = 'float32'": lambda: cut(dtype="float32"),
    "dtype = torch.float16": lambda: cut(dtype=torch.float16),
    "what stands for it": lambda: error(torch.ones(8, 12), torch.ones(1, 12), None, "identity"),
    "negative eigenvalues": lambda: decompose(torch.ones(16, 12), GRAM),
    "needs stats": lambda: Decomposable(classification_loss, None),
    "give a range": lambda: Decomposable(classification_loss, STATS, removed=0.4),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_cannot_be_is_said_in_one_sentence(says):
    with pytest.raises(ValueError, match=says):
        WRONG[says]()


def test_a_truncated_loss_cuts_each_model_by_its_own_vectors_and_small_losses_have_a_fisher():
    shared = Decomposable(classification_loss, STATS)
    with torch.no_grad():
        shared(Toy(), BATCHES[0])
    fresh, other = Decomposable(classification_loss, STATS), Toy(seed=3)
    shared.generator.manual_seed(0)
    assert torch.equal(shared(other, BATCHES[0]), fresh(other, BATCHES[0]))
    small = collect(Toy(), BATCHES, needs={"fisher_in"}, task_loss=lambda *call: 1e-24 * classification_loss(*call))
    usual = collect(Toy(), BATCHES, needs={"fisher_in"}, task_loss=classification_loss)
    torch.testing.assert_close(small["query"].fisher_in * 1e48, usual["query"].fisher_in, rtol=1e-4, atol=0)
    assert device_of(nn.Identity()) == torch.device("cpu")


def test_token_labels_and_tags_of_zeros_are_no_padding():
    """Classes stand last where every token has a label; a batch of tags 0 is no (ids, mask) pair."""
    tagger = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 9))
    ids, tags = torch.randint(20, (3, 5)), torch.tensor([[8, 1, 0, 0, 8]] * 3)
    assert 0 <= accuracy(tagger, [(ids, tags)]) <= 100
    with pytest.raises(ValueError, match="of 9 classes"):
        accuracy(tagger, [(ids, tags + 1)])
    for binary in ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1]):
        collect(tagger, [(ids, torch.tensor([binary] * 3))])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    for side in (mask, mask.flip(1)):
        with pytest.raises(ValueError, match="would count its padding"):
            collect(tagger, [(ids, side)])
