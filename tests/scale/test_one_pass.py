"""Surgery in one pass: several ratios from one factorisation a layer.  Counted, never timed."""

import copy
import warnings
from functools import partial
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from prehab_lib import methods
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import METHODS
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.stats import KNOWN, LayerStats, collect
from prehab_lib.surgery import compress, compress_at
from prehab_lib.weightings import decompose_all
from tests.helpers import Toy, layer, toy_batches
from tests.scale.test_lean import calls  # noqa: F401 (a fixture)
from tests.stack import refuses, same

RATIOS = [0.2, 0.4, 0.6]


@pytest.fixture(scope="module")
def toy():
    """A dense model, all its statistics, and what methods may ask for beside them."""
    model, batches = Toy(n=24, m=32, classes=20), toy_batches(n=24, classes=20, count=12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = collect(model, batches, needs=KNOWN, task_loss=classification_loss, iterations=2)
    return model, stats, dict(task_loss=classification_loss, batches=batches)


class Block(nn.Module):
    """The seven matrices of a LLaMA block, small: (16 and 48 wide), and statistics of full rank for them."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name in ("q", "k", "v", "o"):
                setattr(self, name, nn.Linear(16, 16, bias=False))
            self.gate, self.up, self.down = nn.Linear(16, 48), nn.Linear(16, 48), nn.Linear(48, 16)

    def statistics(self):
        sizes = dict(x=16, o=16, m=16, d=48)
        grams = {name: layer(4, n, 600, seed)[1].gram for seed, (name, n) in enumerate(sizes.items())}
        reads = dict(q="x", k="x", v="x", o="o", gate="m", up="m", down="d")
        return {name: LayerStats(gram=grams[gram]) for name, gram in reads.items()}


def test_one_decomposition_a_layer_serves_three_ratios(calls):  # noqa: F811
    # 7 layers and 4 Grams.  Cholesky: a root for each Gram; q, k, v share one, and so do gate and up.
    # The tall ones, gate and up, and the wide one, down, are made square by a Q R.
    reports = [report.ranks for report in compress_at(Block(), "svd_llm", RATIOS, Block().statistics())]
    assert len(reports) == 3 and len({ranks["down"] for ranks in reports}) == 3
    assert calls == {"svd": 7, "cholesky_ex": 4, "qr": 3}
    calls.clear()
    model = Block()
    lazy = decompose_lazily(model, model.statistics())
    lean = [report.ranks for report in compress_at(model, "svd_llm", RATIOS, decompositions=lazy)]
    # Cholesky: 3 roots (down takes none) and 2 tall weights made square.
    assert lean == reports and calls == {"eigh": 7, "cholesky_ex": 5, "solve_triangular": 2}


def test_a_plain_cut_keeps_no_root(calls):  # noqa: F811
    stats = Block().statistics()
    compress(Block(), "svd_llm", 0.4, stats)
    assert calls["svd"] == 7 and all(found.derived == {} for found in stats.values())
    stats["q"].gram_root()  # whoever wanted it kept it: it is taken
    calls.clear()
    decompose_all(Block(), stats, layers=["q"])
    assert calls == {"svd": 1}


def test_the_dtype_reaches_the_factorisation(toy):
    models = [copy.deepcopy(toy[0]) for _ in range(2)]
    for model, dtype in zip(models, (torch.float64, torch.float32), strict=True):
        compress(model, "svd_llm", 0.4, toy[1], dtype=dtype)
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32} and not same(*models)


@pytest.mark.parametrize("method", METHODS)
def test_each_ratio_is_what_compress_gives(method, toy):
    first, stats, data = toy
    model = copy.deepcopy(first)
    for removed, report in zip((0.3, 0.6), compress_at(model, method, (0.3, 0.6), stats, **data), strict=True):
        alone = copy.deepcopy(first)
        assert compress(alone, method, removed, stats, **data) == report
        assert same(model, alone)
        for factors in (module for module in model.modules() if isinstance(module, LowRankLinear)):
            factors.U.weight.data.zero_()  # whatever is done to a ratio, the next starts afresh


def test_a_ratio_that_fails_leaves_the_dense_model(toy, monkeypatch):
    model, stats, data = copy.deepcopy(toy[0]), *toy[1:]
    before = dict(model.named_modules())
    breaks = Mock(side_effect=[None, ValueError("no luck")])
    monkeypatch.setitem(methods.RECOVERIES, "closed_form", breaks)
    reports = compress_at(model, "svd_llm_update", (0.3, 0.6), stats, **data)
    next(reports)
    assert isinstance(model.query, LowRankLinear)
    with pytest.raises(ValueError, match="no luck"):
        next(reports)
    assert dict(model.named_modules()) == before


def test_bad_ratios_are_named_before_any_work():
    cases = (dict(removed=[0.4, 1.5]), "removed = 1.5"), (dict(removed=[]), "removed is empty")
    call, unknown = partial(compress_at, Block(), "svd"), dict(removed=[0.4], task_los=None)
    refuses(call, *cases, (unknown, "unknown entry 'task_los'"))
