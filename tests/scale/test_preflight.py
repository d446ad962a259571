"""The estimate before anything is loaded: operations and bytes counted as by hand, memory near what one small model takes.

Times are not measured here: see the docstring of `preflight`.
"""

import pytest
import torch
import transformers
from prehab_lib.scale.census import census

from prehab_lib.layers import default_layers, linear_layers
from prehab_lib.prehab import prehab
from prehab_lib.save.rewrite import to_linear
from prehab_lib.scale import preflight, rates
from prehab_lib.scale.preflight import estimate
from prehab_lib.stats import collect
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.perplexity import language_loss
from tests import families
from tests.families import tiny
from tests.helpers import Toy, peak_gib

SEVEN_B = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
SMALL = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_attention_heads=4)
BATCH = dict(batch=2, window=16, dtype=torch.float32)  # one count serves many tests
DECODERS = ["llama", "gpt2"]


def flat(kind, dtype):
    """A device that does everything at a billion operations a second."""
    return 1e9


def llama(blocks=2, **sizes):
    return transformers.LlamaConfig(num_hidden_layers=blocks, **(sizes or SMALL))


@pytest.fixture(scope="module")
def seven():
    return {k: estimate(llama(k, **SEVEN_B), batch=1, window=2048, rates=flat, steps=1, device="cuda") for k in (32,)}


def test_llama_7b_has_the_numbers_that_everybody_knows(seven):
    found = seven[32]
    assert found.parameters == 6_738_415_616
    assert found.compressed == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    gib = found.phase("prehab").gib
    assert gib["masters"] == pytest.approx(4 * found.compressed / 2**30)
    assert gib["optimizer"] == pytest.approx(3 * gib["masters"])  # two moments, and on a GPU a temporary beside them
    assert gib["gradients"] == pytest.approx(gib["masters"])
    assert gib["roots"] == pytest.approx(32 * 8 * (3 * 4096**2 + 11008**2) / 2**30)
    matmuls = found.phase("statistics").operations["matmul", torch.bfloat16]
    weights = 2 * (found.parameters - 32000 * 4096) * 256 * 2048  # two operations a weight and token, embedding free
    assert weights < matmuls < 1.15 * weights  # and attention


@pytest.mark.parametrize("family", DECODERS)
def test_the_census_is_that_of_the_model_itself(family):
    model = tiny(family)
    to_linear(model)
    found = census(model.config, 2, 12, torch.float32, "layers", "AutoModelForCausalLM")
    modules = linear_layers(model)
    assert found.total("parameters") == sum(p.numel() for p in model.parameters())
    assert found.total("trained") == sum(module.weight.numel() for module in modules.values())
    first = [name for name in default_layers(model) if ".0." in name]
    assert [layer.name for layer in found.layers] == first
    assert [(layer.m, layer.n) for layer in found.layers] == [tuple(modules[name].weight.shape) for name in first]
    with pytest.warns(UserWarning, match="tokens per input channel"):
        stats = collect(model, [{"input_ids": torch.arange(24).view(2, 12)}])
    grams = {id(stats[name].gram) for name in first}
    assert len(found.inputs) == len(grams) == len({layer.reads for layer in found.layers})


def test_depth_is_extrapolated_exactly():
    """From one and two blocks, what three blocks have."""
    deep = census(llama(3), 2, 16, torch.float32, "layers", "AutoModelForCausalLM")
    model = transformers.LlamaForCausalLM(llama(3))
    assert deep.total("parameters") == sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    for module in linear_layers(model).values():
        module.weight.requires_grad_(True)
    held, known = {}, {p.data_ptr() for p in model.parameters()}

    def pack(x):
        if x.untyped_storage().data_ptr() not in known:
            held[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.zeros(2, 16, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model.train()(input_ids=ids, labels=ids, use_cache=False)
    assert deep.total("saved") == pytest.approx(sum(x.untyped_storage().nbytes() for x in held.values()), rel=0.01)
    plain, less = (
        estimate(llama(3), **BATCH, rates=flat, steps=1, gradient_checkpointing=on).phase("prehab")
        for on in (False, True)
    )
    assert less.gib["activations"] < 0.75 * plain.gib["activations"] and less.minutes > plain.minutes


def test_operations_are_counted_as_by_hand():
    found = estimate(llama(3), **BATCH, samples=8, rates=flat)
    grams = found.phase("statistics").operations["matmul", torch.float64]
    assert grams == 3 * 2 * 8 * 16 * (3 * 32**2 + 48**2)  # 2 n² N for each distinct input
    surgery = found.phase("surgery").operations
    roots, tall = 3 * 32**3 + 48**3, 2 * 32**3  # gate and up are made square
    assert surgery["cholesky", torch.float64] == pytest.approx(3 * (roots + tall) / 3)
    assert surgery["eigh", torch.float64] == pytest.approx(3 * 7 * 9 * 32**3)
    everything = sum(sum(phase.operations.values()) for phase in found.phases)
    assert found.minutes == pytest.approx(everything / 1e9 / 60)


def test_what_saves_memory_and_what_it_costs(seven):
    base = seven[32]
    options = {
        "optimizer": dict(optimizer="paged_adamw_8bit"),
        "activations": dict(gradient_checkpointing=True),
        "roots": dict(rank_dtype="float32", roots_on="cpu"),
        "Grams": dict(streamed=True),
        "masters": dict(processes=4),
    }
    for part, change in options.items():
        gib = estimate(llama(32, **SEVEN_B), rates=flat, steps=1, device="cuda", **change).phase("prehab").gib
        assert gib[part] < 0.35 * base.phase("prehab").gib[part], part
    streamed = estimate(llama(32, **SEVEN_B), rates=flat, streamed=True, steps=1, device="cuda")
    assert streamed.phase("statistics").total < 8 and streamed.phase("surgery").total < 8
    assert base.phase("surgery").total > 55  # all Grams and one root


def test_what_waits_for_the_device_is_counted():
    """Weights, 256 · 2048 hidden states and, for prehab, the Grams of all blocks: in CPU memory, wherever blocks compute."""
    weights, hidden = 2 * 6_738_415_616 / 2**30, 256 * 2048 * 4096 * 2 / 2**30
    grams = 32 * 8 * (3 * 4096**2 + 11008**2) / 2**30
    options = dict(rates=flat, streamed=True)
    beside = estimate(llama(32, **SEVEN_B), **options, device="cuda")
    assert beside.host == pytest.approx(weights + hidden)
    with_prehab = estimate(llama(32, **SEVEN_B), **options, steps=1, device="cuda")
    assert with_prehab.host == pytest.approx(weights + hidden + grams)
    roots = estimate(llama(32, **SEVEN_B), **options, steps=1, device="cuda", roots_on="cpu", rank_dtype="float32")
    assert roots.host == pytest.approx(grams + grams / 2) and roots.host > with_prehab.host
    one = estimate(llama(32, **SEVEN_B), **options)
    assert one.host == 0 and one.phase("statistics").gib["weights"] == pytest.approx(weights)
    assert min(phase.total for phase in one.phases) > weights + hidden
    one = estimate(llama(32, **SEVEN_B), **options, steps=1, roots_on="cpu")
    assert one.host == 0 and all(phase.gib["Grams"] == pytest.approx(grams) for phase in one.phases)
    assert one.phase("prehab").gib["roots"] == pytest.approx(grams)  # there is no other place
    plain = estimate(llama(32, **SEVEN_B), rates=flat, steps=1)
    assert one.phase("prehab").total == pytest.approx(plain.phase("prehab").total)


def test_it_refuses_what_the_cpu_cannot_hold(monkeypatch):
    found = estimate(llama(32, **SEVEN_B), rates=flat, streamed=True, device="cuda")
    with pytest.raises(
        ValueError, match=r"about 16.6 GiB of CPU memory are needed beside cuda, where 16.0 GiB are free"
    ):
        found.check(80.0, host=16.0)
    found.check(80.0, host=17.0)
    monkeypatch.setattr(preflight, "available_gib", {"cuda": 80.0, "cpu": 16.0}.get)
    with pytest.raises(ValueError, match="CPU memory"):
        found.check()
    with pytest.raises(
        ValueError, match=r"(statistics|surgery) needs about \d\d.\d GiB on cpu, where 16.0 GiB are free: use a smaller"
    ):
        estimate(llama(32, **SEVEN_B), rates=flat, streamed=True).check()


def test_it_refuses_what_cannot_fit_and_says_what_to_try(seven, monkeypatch):
    message = r"prehab needs about 2\d\d\.\d GiB on cuda, where 80.0 GiB are free: try streamed=True or gradient_check"
    with pytest.raises(ValueError, match=message):
        seven[32].check(80.0)
    seven[32].check(1000.0)
    with pytest.raises(
        ValueError, match="on cpu, where 80.0 GiB are free: try gradient_checkpointing=True or rank_dtype='float32' or"
    ):
        estimate(llama(32, **SEVEN_B), rates=flat, steps=1).check(80.0)
    monkeypatch.setattr(preflight, "available_gib", lambda device: None)
    seven[32].check()  # a system that does not say is not in the way
    frugal = dict(optimizer="paged_adamw_8bit", gradient_checkpointing=True, rank_dtype="float32", roots_on="cpu")
    with pytest.raises(ValueError, match="use a smaller model or a larger device"):
        estimate(llama(32, **SEVEN_B), rates=flat, steps=1, streamed=True, **frugal, device="cuda").check(8.0)


def test_it_prints_a_table(seven):
    text = str(seven[32])
    assert "6.74 billion parameters, 6.48 in layers to compress" in text
    assert [line.split()[0] for line in text.splitlines()[1:5]] == ["statistics", "prehab", "surgery", "in"]
    assert f"{seven[32].peak:.2f} GiB" in text.splitlines()[4] and "masters 24.12" in text
    assert "CPU memory beside it" in str(
        estimate(llama(3), **BATCH, rates=flat, streamed=True, samples=10**5, device="cuda")
    )


@pytest.mark.filterwarnings("ignore:.*tokens per input channel")
def test_memory_is_near_what_is_measured():
    """One block of width 256 goes through all three phases, and every tensor's bytes are counted."""
    config = llama(1, vocab_size=512, hidden_size=256, intermediate_size=768, num_attention_heads=4)
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(512, (2, 256), generator=generator)} for _ in range(4)]
    plan = dict(
        batch=2, window=256, samples=8, steps=2, surrogate="stable_rank", arithmetic="fast", dtype=torch.float32
    )
    found = estimate(config, **plan, rates=flat)
    model = transformers.LlamaForCausalLM(config)
    held = sum(p.nbytes for p in model.parameters()) / 2**30
    options = dict(surrogate="stable_rank", lam=0.1, steps=2, lr=1e-5, arithmetic="fast", log_every=None)
    phases = {
        "statistics": lambda: stats.update(collect(model, batches)),
        "prehab": lambda: prehab(model, language_loss, batches, stats, **options),
        "surgery": lambda: compress(model, "svd_llm", 0.4, stats),
    }
    stats = {}
    for name, run in phases.items():
        _, most, left = peak_gib(run)
        assert found.phase(name).total == pytest.approx(held + most, rel=0.2), name
        held += left


def test_rates_are_measured_and_memory_is_asked_for():
    assert 1e8 < rates.rate("matmul", torch.float32) < 1e15
    assert rates.rate("matmul", torch.float32) == rates.rate("matmul", torch.float32)
    free = rates.available_gib()
    assert free is None or 0.1 < free < 1e5


def test_sources(tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    found = [
        estimate(source, batch=2, window=12, dtype=torch.float32, rates=flat)
        for source in (model, model.config, str(tmp_path))
    ]
    assert len({str(one) for one in found}) == 1


@pytest.mark.parametrize("blocks", [2, 3])
def test_a_compressed_model_is_named(blocks, tmp_path):
    model = families.llama(num_hidden_layers=blocks)
    compress(model, "svd", 0.4)
    folder = save(model, tmp_path / "small")
    for source, name in ((folder, "small"), (str(folder), "small"), (load(folder), "LowRankLlamaForCausalLM")):
        with pytest.raises(ValueError, match=f"{name}' is compressed already: give the dense model"):
            estimate(source, rates=flat, **BATCH)
    again = save(model, tmp_path / "dense", merged=True)
    assert estimate(str(again), rates=flat, **BATCH).compressed == blocks * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (Toy(), {}, "Toy has no transformers configuration"),
        (None, {"optimizer": "sgd"}, "optimizer = 'sgd' is not known"),
        (None, {"train": "some"}, "train = 'some' is not known"),
        (None, {"window": 0}, "window = 0"),
    ],
)
def test_bad_input_is_named(source, change, message):
    with pytest.raises(ValueError, match=message):
        estimate(source or llama(), rates=flat, **change)
