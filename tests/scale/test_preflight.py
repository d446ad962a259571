"""The estimate before anything is loaded: bytes counted as by hand, memory near what small models take."""

import pytest
import torch
import transformers

from prehab_lib.fast import Fast
from prehab_lib.layers import linear_layers
from prehab_lib.prehab import Memory, Training, prehab
from prehab_lib.rehab import rehab
from prehab_lib.report import forecast
from prehab_lib.save.rewrite import to_linear
from prehab_lib.scale import preflight
from prehab_lib.scale.preflight import GIB, Plan, estimate
from prehab_lib.stats import collect
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.perplexity import language_loss, perplexity
from tests import families
from tests.families import tiny
from tests.helpers import Toy, peak_gib
from tests.tasks.helpers import refuses

SEVEN_B = dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_attention_heads=32)
WEIGHTS, COMPRESSED = 6_738_415_616, 32 * (4 * 4096**2 + 3 * 4096 * 11008)
GRAMS = 32 * 8 * (3 * 4096**2 + 11008**2) / GIB  # q, k and v read one tensor, gate and up another
HIDDEN = 256 * 2048 * 4096 * 2 / GIB


def seven(device="cuda", **plan):
    return estimate(transformers.LlamaConfig(num_hidden_layers=32, **SEVEN_B), Plan(**plan), device)


def test_llama_7b_has_the_numbers_that_everybody_knows():
    needed = seven(steps=1, lora=8)
    assert (needed.parameters, needed.compressed) == (WEIGHTS, COMPRESSED)
    assert list(needed.phases) == ["statistics", "prehab", "surgery", "rehab", "scoring"]
    gib = needed.phases["prehab"]
    assert gib["masters"] == gib["gradients"] == pytest.approx(4 * COMPRESSED / GIB)
    assert gib["optimizer"] == pytest.approx(3 * gib["masters"])  # two moments, and on a GPU a temporary beside them
    assert gib["roots"] == gib["Grams"] == pytest.approx(GRAMS)
    assert needed.phases["surgery"]["factors"] == pytest.approx(0.6 * 2 * COMPRESSED / GIB)


@pytest.mark.filterwarnings("ignore:.*tokens per input channel")
def test_layers_and_what_they_read_are_those_of_the_model_itself():
    for family in ("llama", "mistral", "qwen2", "qwen3", "opt", "gpt2"):
        model = tiny(family)
        sizes = preflight._sizes(model, torch.float32)
        to_linear(model)
        assert sizes.parameters == sum(p.numel() for p in model.parameters()), family
        assert sizes.compressed == sum(layer.weight.numel() for layer in linear_layers(model).values()), family
        stats = collect(model, [{"input_ids": torch.arange(24).view(2, 12)}])
        grams = {id(layer.gram): len(layer.gram) for layer in stats.values()}
        assert sorted(sizes.inputs) == sorted(grams.values()), family
        if family in ("llama", "opt"):  # whose heads are as wide as their blocks
            counted = 2 * 12 * sizes.dense + 4 * 12 * 12 * sizes.width * sizes.blocks  # matrices, attention
            assert forecast.forward(sizes.model, 12) == counted, family
            step = forecast.passes(sizes, 3, 2, 12, free=sizes.compressed, steps=3, again=1)
            assert step["single"] == 24 * counted - 144 * (sizes.dense - sizes.compressed)  # no gradient of the head


def test_what_saves_memory():
    base = seven(steps=1).phases["prehab"]
    shares = {"optimizer": 0.67, "activations": 0.2, "roots": 0.5, "Grams": 0}
    changes = {"optimizer": "adamw_fused", "gradient_checkpointing": True, "rank_dtype": "float32", "streamed": True}
    for (part, share), change in zip(shares.items(), changes.items(), strict=True):
        assert seven(steps=1, **dict([change])).phases["prehab"].get(part, 0) <= share * base[part], part
    away = seven(steps=1, roots_on="cpu", grams_on="cpu")
    assert not {"roots", "Grams"} & {*away.phases["prehab"], *away.phases["surgery"]} and away.host == 2 * GRAMS
    assert seven(steps=1, refresh=8).phases["prehab"]["tangents"] == base["masters"]
    streamed = seven(steps=1, streamed=True)
    assert streamed.totals["statistics"] < 8 and streamed.totals["surgery"] < 8
    assert seven().totals["surgery"] > 55  # all Grams and one root


def test_what_waits_for_the_device_is_counted():
    """Weights, 256 · 2048 hidden states and, for prehab, the Grams of all blocks: in CPU memory, wherever blocks compute."""
    weights = 2 * WEIGHTS / GIB
    assert seven(streamed=True).host == pytest.approx(weights + HIDDEN)
    assert seven(streamed=True, steps=1).host == pytest.approx(weights + HIDDEN + GRAMS)
    assert seven(streamed=True, steps=1, roots_on="cpu", rank_dtype="float32").host == pytest.approx(1.5 * GRAMS)
    one = seven("cpu", streamed=True, steps=1, roots_on="cpu")  # there is no other place
    assert one.host == 0 and one.phases["statistics"]["weights"] == pytest.approx(weights)
    assert one.phases["prehab"]["roots"] == pytest.approx(GRAMS)
    assert one.totals["prehab"] == pytest.approx(seven("cpu", steps=1).totals["prehab"])


def test_it_refuses_what_cannot_fit(monkeypatch):
    free = {"cuda": 80.0, "cpu": 16.0}
    monkeypatch.setattr(preflight, "available_gib", free.get)
    cases = [
        (seven(steps=1), [], r"prehab needs about 2\d\d\.\d GiB on cuda, where 80.0 GiB are free: try Plan"),
        (seven(steps=1), ["add memory"], "80.0 GiB are free: add memory"),
        (seven(streamed=True), [], "beside cuda needs about 16.6 GiB on cpu, where 16.0 GiB"),
        (seven("cpu", streamed=True), [], r"(statistics|surgery) needs about \d\d.\d GiB on cpu, where 16.0 GiB"),
    ]
    for needed, remedy, message in cases:
        refuses(message, needed.check, *remedy)
    free |= {"cuda": 1000.0, "cpu": 17.0}
    seven(streamed=True).check()
    seven(steps=1).check()
    monkeypatch.undo()
    assert 0.01 < preflight.available_gib() < 1e5


def test_it_prints_a_table():
    needed = seven(steps=1, streamed=True)
    first, *lines = str(needed).splitlines()
    assert first == "6.74 billion parameters, 6.48 in layers to compress"
    assert [line.split()[0] for line in lines[:5]] == ["statistics", "prehab", "surgery", "scoring", "at"]
    assert "masters 24.12" in lines[1] and f"{needed.peak:.2f} GiB" in lines[4]
    assert f"{needed.host:.2f} GiB   of CPU memory beside it" in lines[5]


SMALL = dict(vocab_size=512, hidden_size=256, num_attention_heads=4)
LLAMA = transformers.LlamaConfig(num_hidden_layers=2, intermediate_size=768, **SMALL)
OPT = transformers.OPTConfig(num_hidden_layers=1, ffn_dim=1024, word_embed_proj_dim=256, **SMALL)
HALF = {"dtype": torch.bfloat16, "gradient_checkpointing": True}
MEASURED = {"llama in bfloat16": (LLAMA, HALF), "opt": (OPT, {"dtype": torch.float32})}


@pytest.mark.filterwarnings("ignore:.*tokens per input channel")
@pytest.mark.parametrize(("config", "options"), MEASURED.values(), ids=MEASURED)
def test_memory_is_near_what_is_measured(config, options):
    """A small model goes through all phases, and every tensor's bytes are counted."""
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(512, (2, 256), generator=generator)} for _ in range(4)]
    plan = Plan(batch=2, window=256, samples=8, steps=2, lora=4, rank_dtype="float32", **options)
    needed = estimate(config, plan)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=plan.dtype)
    held, stats = sum(p.nbytes for p in model.parameters()) / GIB, {}
    train = dict(surrogate=Fast("stable_rank"), lam=0.1, steps=2, lr=1e-5, training=Training(log_every=None))
    train["memory"] = Memory(gradient_checkpointing=plan.gradient_checkpointing)
    runs = {
        "statistics": lambda: stats.update(collect(model, batches)),
        "prehab": lambda: prehab(model, language_loss, batches, stats, **train),
        "surgery": lambda: compress(model, "svd_llm", 0.4, stats),
        "rehab": lambda: stats.clear() or rehab(model, language_loss, batches, rank=4, steps=2, lr=1e-4),
        "scoring": lambda: perplexity(model, batches),
    }
    for phase, run in runs.items():
        _, most, left = peak_gib(run)
        assert 1 / 1.35 < needed.totals[phase] / (held + most) < 1.35, phase
        held += left


def test_sources_are_dense_models_by_any_name(tmp_path):
    model = families.llama()
    model.save_pretrained(tmp_path)
    plan = Plan(dtype=torch.float32)
    assert len({str(estimate(source, plan)) for source in (model, model.config, str(tmp_path))}) == 1
    compress(model, "svd", 0.4)
    folder = save(model, tmp_path / "small")
    for source, name in ((folder, "small"), (str(folder), "small"), (load(folder), "LowRankLlamaForCausalLM")):
        refuses(f"{name}' is compressed already: give the dense model", estimate, source)
    dense = str(save(model, tmp_path / "dense", merged=True))
    assert estimate(dense).compressed == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48)
    refuses("Toy has no transformers configuration", estimate, Toy())
    refuses("window = 0", Plan, window=0)
