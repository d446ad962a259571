"""Block by block: the same numbers and the same models as all at once, and one block's memory."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from prehab_lib import weightings
from prehab_lib.methods import Method, method_named
from prehab_lib.save.rewrite import to_linear
from prehab_lib.scale import stream, walk
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from tests.families import llama, tiny, vit
from tests.helpers import Toy
from tests.tasks.helpers import refuses

DECODERS = ["llama", "mistral", "qwen2", "qwen3", "opt", "gpt2"]
NEEDS = {"gram", "mean_abs", "max_abs", "influence"}

pytestmark = pytest.mark.filterwarnings("ignore:.*tokens per input channel")


def model_of(family):
    model = tiny(family)
    to_linear(model)
    return model


def tokens(count=3, padded=False):
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(3, 40, (4, 12), generator=generator)} for _ in range(count)]
    for batch in batches if padded else []:
        batch["attention_mask"] = (torch.arange(12) < torch.tensor([[12], [9], [5], [12]])).long()
    return batches


def assert_same_statistics(ours, theirs):
    assert list(ours) == list(theirs)
    for name, found in theirs.items():
        for statistic in NEEDS - {"influence"}:
            torch.testing.assert_close(getattr(ours[name], statistic), getattr(found, statistic), rtol=1e-12, atol=0)
        assert ours[name].tokens == found.tokens and ours[name].influence == pytest.approx(found.influence, rel=1e-6)


@pytest.mark.parametrize(("family", "padded"), [("llama", False), *((family, True) for family in DECODERS)])
def test_statistics_are_those_of_the_whole_model(family, padded):
    model, batches = model_of(family).train(), tokens(padded=padded)
    ours = stream.collect(model, batches, needs=NEEDS)
    assert_same_statistics(ours, collect(model, batches, needs=NEEDS))
    q, k = list(ours)[:2]
    assert (ours[q].gram is ours[k].gram) == (family != "gpt2")  # whose query, key and value are one layer
    assert model.training and model.config.use_cache
    assert all("forward" not in vars(module) for module in model.modules())


def test_any_row_of_blocks_will_do():
    images = [(torch.rand(4, 3, 16, 16), torch.zeros(4)) for _ in range(3)]
    for family, batches in {"bert": tokens(padded=True), "vit": images}.items():
        model = model_of(family)
        layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".1." in name]
        assert_same_statistics(stream.collect(model, batches, layers, NEEDS), collect(model, batches, layers, NEEDS))


@pytest.mark.parametrize("family", DECODERS)
def test_surgery_is_that_of_the_whole_model(family):
    ruler = Method("activation", needs=frozenset({"mean_abs"}))  # asvd's
    own = Method("gram", {"model.layers.1.mlp.up_proj": 2, "model.layers.0.mlp.down_proj": 3}, needs={"gram"})
    for method in {"llama": ("svd_llm", "svd", own), "qwen2": (ruler,)}.get(family, ("svd_llm",)):
        removed = None if method is own else 0.4
        streamed, batches = model_of(family), tokens()
        whole = copy.deepcopy(streamed)
        found = collect(whole, batches, needs={"gram", "mean_abs"})
        lean = decompose_lazily(whole, found, method_named(method).weighting)
        expected = compress(whole, method, removed, found, decompositions=lean)
        assert stream.compress(streamed, method, removed, None if method == "svd" else batches) == expected
        for (name, ours), theirs in zip(streamed.named_parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_one_block_of_statistics_and_one_decomposition_at_a_time(monkeypatch):
    grams, cuts, most = [], [], {"grams": 0, "cuts": 0}
    decompose, collect_block = weightings.decompose, walk.stats.collect

    def counted_cut(*args, **options):
        found = decompose(*args, **options)
        cuts.append(weakref.ref(found))
        most["cuts"] = max(most["cuts"], sum(ref() is not None for ref in cuts))
        return found

    def counted_grams(*args, **options):
        stats = collect_block(*args, **options)
        grams.extend(map(weakref.ref, {id(layer.gram): layer.gram for layer in stats.values()}.values()))
        most["grams"] = max(most["grams"], sum(ref() is not None for ref in grams))
        return stats

    monkeypatch.setattr(weightings, "decompose", counted_cut)
    monkeypatch.setattr(walk.stats, "collect", counted_grams)
    model = llama(num_hidden_layers=3)
    dense = [weakref.ref(module.weight) for module in model.modules() if type(module) is nn.Linear]
    gc.disable()  # without the collector: nothing may wait in a cycle
    try:
        stream.compress(model, "svd_llm", 0.4, tokens())
        assert most == {"grams": 4, "cuts": 1} and len(grams) == 12 and len(cuts) == 21
        assert sum(ref() is not None for ref in dense) == 1  # the language-model head
    finally:
        gc.enable()


class Sum(nn.Module):
    """Not a row: the second block reads more than the first one said."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12)) for _ in range(2))

    def forward(self, x):
        return self.blocks[1](x + self.blocks[0](x))


def test_bad_input_is_named_and_changes_nothing():
    model, x = llama(), [{"x": torch.ones(2, 12)}]
    dark = [(torch.full((1, 3, 16, 16), float("nan")), torch.zeros(1))]
    statistics = {
        "not 'fisher_in': use stats.collect": (model, tokens(), None, {"fisher_in"}),
        "there are no calibration batches": (model, []),
        "'lm_head' is in no block": (model, tokens(), ["lm_head"]),
        "'query' is in no block": (Toy(), x),
        "the hidden state changes before block 'blocks.1'": (Sum(), x),
        "NaN or infinite": (vit(), dark, ["blocks.0.attn.qkv"]),
    }
    cuts = {
        "allocation 'sensitivity' looks at all layers": ("asvd", 0.4, tokens()),
        "recovery 'closed_form' looks at all layers": ("svd_llm_update", 0.4, tokens()),
        "not 'fisher_in': use surgery.compress": ("fwsvd", 0.4, tokens()),
        "the method needs gram: pass batches": ("svd_llm", 0.4),
        "removed = 1.4": ("svd_llm", 1.4, tokens()),
    }
    for message, call in statistics.items():
        refuses(message, stream.collect, *call)
        assert all("forward" not in vars(module) for module in call[0].modules()), message
    for message, call in cuts.items():
        refuses(message, stream.compress, model, *call)
    assert model.config.use_cache and sum(type(module) is nn.Linear for module in model.modules()) == 15
