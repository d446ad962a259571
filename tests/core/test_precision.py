"""Training in half precision: what bfloat16 loses, that float32 masters do not, and what saves memory at the same result."""

import copy
import weakref

import pytest
import torch
from torch import nn

from prehab_lib import surrogates
from prehab_lib.evaluate import classification_loss
from prehab_lib.precision import Memory, recomputed_activations
from prehab_lib.prehab import Training, prehab
from prehab_lib.save.rewrite import to_linear
from prehab_lib.stats import collect
from tests.families import llama, tiny
from tests.helpers import Toy, cosine, toy_batches
from tests.stack import refuses

SETTINGS = dict(surrogate="nuclear", lam=0.1, steps=4, lr=1e-3)


def token_loss(model, batch):
    return model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss


def tokens(count=6):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 40, (8, 12), generator=generator)} for _ in range(count)]


@pytest.fixture
def toy():
    model, batches = Toy(n=48, m=64), toy_batches(n=48, size=500)
    return model, batches, collect(model, batches)


@pytest.fixture(scope="module")
def text():
    model = llama()
    return model, tokens(), collect(model, tokens(4 * 6))


def weights(model):
    return torch.cat([parameter.detach().double().flatten() for parameter in model.parameters()])


def test_prehab_of_a_bfloat16_model_trains_masters_and_rounds_once(toy):
    half = copy.deepcopy(toy[0]).to(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    seen = set()

    def spying(model, batch):
        seen.add((model.query.weight.dtype, model.query.bias.dtype, model.query(batch[0].bfloat16()).dtype))
        return classification_loss(model, (batch[0].to(torch.bfloat16), batch[1]))

    more = SETTINGS | dict(lam=0.0, lr=1e-5, steps=20)
    history = prehab(half, spying, toy[1], toy[2], **more)
    prehab(exact, classification_loss, toy[1], toy[2], **more)
    assert seen == {(torch.float32, torch.bfloat16, torch.bfloat16)}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and len(history.rows) == 20
    # Up to one unit in the last place of bfloat16 (2⁻⁸): the forward pass, too, is in bfloat16.
    torch.testing.assert_close(half.query.weight.float(), exact.query.weight, rtol=2**-7, atol=5e-5)
    start = toy[0].query.weight.bfloat16()
    assert float((half.query.weight != start).float().mean()) > 0.3  # steps of which most, one at a time, would vanish


def test_what_is_not_trained_comes_back_to_the_last_bit(toy):
    for compute in (None, "float32", "bfloat16"):
        model = copy.deepcopy(toy[0]).to(torch.bfloat16)
        loss = lambda m, b: classification_loss(m, (b[0].to(m.query.bias.dtype), b[1]))  # noqa: E731
        prehab(model, loss, toy[1], toy[2], memory=Memory(compute=compute), **SETTINGS)
        for name, parameter in model.named_parameters():
            same = torch.equal(parameter, toy[0].get_parameter(name).bfloat16())
            assert same == name.endswith("bias") and parameter.dtype == torch.bfloat16, (compute, name)


@pytest.mark.parametrize("coordinates", ["weight", "whitened"])
def test_bfloat16_compute_of_a_float32_model_is_near_float32(coordinates, text):
    """Mixed precision moves the weights as float32 does: the steps differ by a few percent, and stay float32."""
    model, batches, stats = text
    ours, exact = copy.deepcopy(model), copy.deepcopy(model)
    more = SETTINGS | dict(coordinates=coordinates, lr=1e-5)
    prehab(ours, token_loss, batches, stats, memory=Memory(compute="bfloat16"), **more)
    prehab(exact, token_loss, batches, stats, memory=Memory(compute="float32"), **more)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    step, wanted = (weights(m) - weights(model) for m in (ours, exact))
    assert not torch.equal(step, wanted)
    assert cosine(step, wanted) > 0.95


FIRST_BLOCKS = {"llama": "model.layers.0", "gpt2": "transformer.h.0", "vit": "blocks.0"}


@pytest.mark.parametrize(("family", "coordinates"), [*((f, "weight") for f in FIRST_BLOCKS), ("llama", "whitened")])
def test_recomputed_activations_give_the_same_weights_and_flags_come_back(family, coordinates):
    model, first = tiny(family).train(), FIRST_BLOCKS[family]
    to_linear(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1  # the recomputation must drop the same numbers
    generator = torch.Generator().manual_seed(0)
    images = [(torch.rand(4, 3, 16, 16, generator=generator), torch.arange(4)) for _ in range(4)]
    batches, loss = (images, classification_loss) if family == "vit" else (tokens(), token_loss)
    stats = collect(model, batches, dtype=torch.float32)
    trained, calls = {}, {}
    for on in (False, True):
        trained[on], calls[on] = copy.deepcopy(model), 0
        block = trained[on].get_submodule(first)
        inner = next(module for module in block.modules() if isinstance(module, nn.Linear))
        inner.register_forward_hook(lambda *_, on=on: calls.__setitem__(on, calls[on] + 1))
        before = flags_of(trained[on])
        torch.manual_seed(0)
        more = SETTINGS | dict(steps=2, coordinates=coordinates, memory=Memory(gradient_checkpointing=on))
        prehab(trained[on], loss, batches, stats, **more)
        assert flags_of(trained[on]) == before
    assert calls[True] == 2 * calls[False]  # each block ran again
    torch.testing.assert_close(weights(trained[True]), weights(trained[False]), rtol=0, atol=1e-7)


def flags_of(model):
    flags = [getattr(module, "gradient_checkpointing", None) for module in model.modules()]
    return flags, getattr(getattr(model, "config", None), "use_cache", None), getattr(model, "grad_checkpointing", None)


def test_checkpointing_that_was_on_stays_on():
    model = llama()
    with recomputed_activations(model, True):
        pass
    assert not model.is_gradient_checkpointing
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    before = model.model.layers[0]._gradient_checkpointing_func
    with recomputed_activations(model, True):
        pass
    assert model.is_gradient_checkpointing and model.model.layers[0]._gradient_checkpointing_func is before


def test_other_options_give_the_same_surrogate_and_weights(toy):
    """compute="float32" to the last bit; float32 roots on the CPU, and the fused optimizer, nearly."""
    cheap = Memory(rank_dtype="float32", roots_on="cpu")
    options = {"float32": Memory(compute="float32"), "cheap": cheap, "fused": Memory(optimizer="adamw_fused")}
    models, rows = {}, {}
    for name, memory in ({"exact": Memory()} | options).items():
        models[name] = copy.deepcopy(toy[0])
        history = prehab(models[name], classification_loss, toy[1], toy[2], memory=memory, **SETTINGS)
        rows[name] = history.column("surrogate")
        assert rows[name] == pytest.approx(rows["exact"], rel=1e-5), name
        torch.testing.assert_close(weights(models[name]), weights(models["exact"]), rtol=0, atol=1e-6, msg=name)
    assert torch.equal(weights(models["float32"]), weights(models["exact"])) and rows["float32"] == rows["exact"]


def test_one_layer_of_the_surrogate_lives_at_a_time(toy, monkeypatch):
    """The graph of one W L is gone before the next is made: at most one product is alive."""
    alive, most = [], []

    def watched(M):
        token = set()  # lives as long as the graph of M
        M.register_hook(lambda _, token=token: None)
        alive.append(weakref.ref(token))
        del token
        most.append(sum(ref() is not None for ref in alive))
        return surrogates.nuclear(M)

    monkeypatch.setitem(surrogates.SURROGATES, "watched", watched)
    for coordinates, at_once in {"weight": 1, "whitened": 3}.items():
        alive.clear()
        most.clear()
        more = SETTINGS | dict(surrogate="watched", steps=1, training=Training(log_every=None))
        prehab(copy.deepcopy(toy[0]), classification_loss, toy[1], toy[2], coordinates=coordinates, **more)
        assert max(most) == at_once, coordinates


def test_bad_options_are_named(toy):
    refuses(
        Memory,
        ({"compute": "float16"}, "compute = 'float16' is not known: choose one of float32, bfloat16, None"),
        ({"optimizer": "sgd"}, "optimizer = 'sgd' is not known: choose one of adamw, "),
        ({"rank_dtype": "bfloat16"}, "rank_dtype = 'bfloat16' is not known: choose one of float64, float32"),
        ({"roots_on": "disk"}, "roots_on = 'disk' is not known: choose one of device, cpu"),
    )
    with pytest.raises(ValueError, match="Toy offers no gradient checkpointing"):
        prehab(toy[0], classification_loss, toy[1], toy[2], memory=Memory(gradient_checkpointing=True), **SETTINGS)


def test_half_precision_of_every_family_of_language_models_trains():
    """Frozen bfloat16 norms and embeddings beside float32 masters, and everything in float32: both run."""
    for family in ("qwen2", "opt"):
        model = tiny(family, torch.bfloat16)
        stats = collect(model, tokens(2), dtype=torch.float32)
        for train in ("layers", "all"):
            more = SETTINGS | dict(steps=1, training=Training(train=train))
            history = prehab(model, token_loss, tokens(2), stats, **more)
            assert history.rows[0]["task_loss"] > 0 and {p.dtype for p in model.parameters()} == {torch.bfloat16}
