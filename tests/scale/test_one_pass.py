"""Surgery in one pass: what is computed, how often, and what it may cost in accuracy.  Counted, never timed."""

import copy
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

from prehab_lib import surgery
from prehab_lib.budget import rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import METHODS
from prehab_lib.stats import KNOWN, LayerStats, collect
from prehab_lib.surgery import compress, compress_at
from prehab_lib.weightings import Weighting, decompose, decompose_all, decompose_lazily, error
from tests.helpers import Toy, layer, toy_batches

RATIOS = [0.2, 0.4, 0.6]
COUNTED = ("eigh", "svd", "qr", "inv", "solve", "cholesky_ex", "solve_triangular")
SHAPES = {"square": (32, 32), "tall": (48, 32), "wide": (32, 48), "very wide": (16, 48)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@pytest.fixture
def calls(monkeypatch):
    """How often each function of torch.linalg is called."""
    count = Counter()
    for name in COUNTED:
        original = getattr(torch.linalg, name)

        def counted(*args, name=name, original=original, **kwargs):
            count[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(torch.linalg, name, counted)
    return count


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
        grams = {
            name: layer(4, n, 600, seed)[1].gram for seed, (name, n) in enumerate(dict(x=16, o=16, m=16, d=48).items())
        }
        reads = dict(q="x", k="x", v="x", o="o", gate="m", up="m", down="d")
        return {name: LayerStats(gram=grams[gram]) for name, gram in reads.items()}


def test_one_eigendecomposition_a_layer_serves_three_ratios(calls):
    model = Block()
    reports = [report.ranks for report in compress_at(model, "svd_llm", RATIOS, model.statistics())]
    assert len(reports) == 3 and len({ranks["down"] for ranks in reports}) == 3
    # 7 layers.  Cholesky: 3 roots (q, k, v share one; gate and up share one; down takes none) and 2 tall weights made square.
    assert calls == {"eigh": 7, "cholesky_ex": 5, "solve_triangular": 2}


def test_a_plain_cut_keeps_no_root(calls):
    model = Block()
    stats = model.statistics()
    compress(model, "svd_llm", 0.4, stats)
    assert calls["eigh"] == 7 and all(found.derived == {} for found in stats.values())
    stats["q"].gram_root()  # whoever wanted it kept it: it is taken
    calls.clear()
    decompose_all(Block(), stats, layers=["q"])
    assert calls == {"eigh": 1}


@every_shape
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_regular_case_is_one_eigendecomposition_of_the_small_side(shape, dtype, calls, monkeypatch):
    W = layer(*shape, 10)[0]
    stats = LayerStats(gram=layer(*shape, 5000, spread=0.2)[1].gram)
    if shape[0] == shape[1]:
        W = W + 8 * torch.eye(len(W))  # a random square matrix is nearly singular
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda K, **out: sizes.append(K.shape) or eigh(K, **out))
    decompose(W, stats, "gram", dtype=dtype)
    assert sizes == [(min(shape), min(shape))]
    assert not calls["svd"] + calls["inv"] + calls["qr"] + calls["solve"]


def test_a_singular_gram_of_a_wide_weight_costs_no_root(calls):
    W, stats, _ = layer(16, 48, 30)  # 30 tokens: of rank 30
    whole = decompose(W, stats, "gram")
    assert calls == {"eigh": 1}
    torch.testing.assert_close(whole.truncate(16).dense(), W, rtol=0, atol=1e-10)


def test_the_rootless_way_says_what_the_root_says():
    W, stats, _ = layer(16, 48, 600)
    L = stats.gram_root()
    ours, theirs = decompose(W, stats, "gram"), decompose(W, None, Weighting(right=L))
    torch.testing.assert_close(ours.sigma, theirs.sigma, rtol=1e-9, atol=0)
    for rank in (1, 5, 12):
        torch.testing.assert_close(ours.truncate(rank).dense(), theirs.truncate(rank).dense(), rtol=0, atol=1e-9)


def test_what_is_noise_beside_its_own_weight_follows_what_is_seen():
    """The first row carries more, and round-off of its far larger unseen part could carry as much: the second comes first."""
    W, G = torch.zeros(2, 8, dtype=torch.float64), torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]).double())
    W[0, 0], W[0, 7], W[1, 1] = 1, 1e9, 0.5
    whole = decompose(W, LayerStats(gram=G), "gram")
    assert whole.sigma.tolist() == [0.5, 0]
    torch.testing.assert_close(whole.truncate(1).dense()[1], W[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.truncate(2).dense(), W, rtol=1e-15, atol=1e-6)


def test_what_the_rootless_way_cannot_see_is_ordered_by_the_weights():
    """A Gram of rank 3: three components carry something, the others follow largest weight first, and nothing is lost."""
    W, stats, _ = layer(16, 48, 3)
    whole = decompose(W, stats, "gram")
    assert (whole.sigma > 0).tolist() == [True] * 3 + [False] * 13
    assert error(W, whole.truncate(3).dense(), stats) <= 1e-15 * float(whole.sigma[0]) ** 2
    weights = whole.right[3:].norm(dim=1)
    assert (weights.diff() <= 1e-12).all() and weights[0] > 2 * weights[-1]
    torch.testing.assert_close(whole.truncate(16).dense(), W, rtol=0, atol=1e-11)


@every_shape
def test_float32_costs_little_under_an_ill_conditioned_gram(shape):
    """Condition 1e8: the error of float32's answer, beyond the least there is, at the ranks of four ratios."""
    W, _, _ = layer(*shape, 10)
    n = shape[1]
    turn = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    G = (turn * torch.logspace(0, -8, n, dtype=torch.float64)) @ turn.T
    stats = LayerStats(gram=(G + G.T) / 2)
    exact, single = (decompose(W, stats, "gram", dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert single.left.dtype == single.right.dtype == single.sigma.dtype == torch.float32
    for removed in (0.2, 0.4, 0.6, 0.8):
        rank = rank_for(shape, removed)
        excess = error(W, single.truncate(rank).dense(), stats) / exact.tail_error(rank) - 1
        assert -1e-7 < excess < 1e-4  # below zero: products rounded to float32 are not quite of that rank
    torch.testing.assert_close(single.sigma.double(), exact.sigma, rtol=0, atol=1e-4 * float(exact.sigma[0]))


def test_the_dtype_reaches_the_factorisation(toy):
    seen = []

    def spy(*args, **more):
        seen.append(more["dtype"])
        return decompose_lazily(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surgery, "decompose_lazily", spy)
        models = [copy.deepcopy(toy[0]) for _ in range(2)]
        for model, dtype in zip(models, (torch.float64, torch.float32), strict=True):
            compress(model, "svd_llm", 0.4, toy[1], dtype=dtype)
    assert seen == [torch.float64, torch.float32]
    for double, single in zip(*(model.parameters() for model in models), strict=True):
        assert double.dtype == single.dtype


@pytest.mark.parametrize("method", METHODS)
def test_each_ratio_is_what_compress_gives(method, toy):
    first, stats, data = toy
    model = copy.deepcopy(first)
    for removed, report in zip((0.3, 0.6), compress_at(model, method, (0.3, 0.6), stats, **data), strict=True):
        alone = copy.deepcopy(first)
        assert compress(alone, method, removed, stats, **data) == report
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
        for module in model.modules():  # whatever is done to a ratio, the next starts afresh
            if isinstance(module, LowRankLinear):
                module.U.weight.data.zero_()


@every_shape
@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("weighting", ["gram", "gram_logit", "identity"])
def test_fewer_components_are_the_first_of_all(weighting, dtype, singular, shape):
    W, stats, _ = layer(*shape, rows=10 if singular else 400)
    whole = decompose(W, stats, weighting, dtype=dtype)
    for most in (1, 5, 15, min(shape)):
        some = decompose(W, stats, weighting, dtype=dtype, most=most)
        assert some.left.shape == (shape[0], most) and some.right.shape == (most, shape[1]) and some.shape == shape
        ours, theirs = some.truncate(most), whole.truncate(most)
        assert torch.equal(ours.U, theirs.U) and torch.equal(ours.V, theirs.V)
        torch.testing.assert_close(some.sigma, whole.sigma[:most])
        scale = float(whole.sigma.double().square().sum())
        for rank in (1, most):
            assert some.tail_error(rank) == pytest.approx(whole.tail_error(rank), rel=1e-3, abs=1e-9 * scale)
        with pytest.raises(ValueError, match="most = 0"):
            decompose(W, stats, weighting, most=0)
        if most < min(shape):
            with pytest.raises(ValueError, match=f"rank = {most + 1}: this layer has 1 to {most}"):
                some.truncate(most + 1)


def test_the_first_components_where_the_gram_hardly_sees_some():
    """Eight rows carry little beside what the Gram does not see of them: they count as unseen, and follow by their weights."""
    seen = torch.cat([torch.arange(8, 0, -1), 1e-5 * torch.arange(8, 0, -1)]).double()
    unseen = 1e3 * torch.randn(8, 32, dtype=torch.float64)
    W = torch.cat([seen.diag(), torch.cat([torch.zeros(8, 32, dtype=torch.float64), unseen])], dim=1)  # (16, 48)
    stats = LayerStats(gram=torch.cat([torch.ones(16), torch.zeros(32)]).double().diag())
    whole = decompose(W, stats)
    assert (whole.sigma > 0).tolist() == 8 * [True] + 8 * [False]
    for most in (8, 12):
        some = decompose(W, stats, most=most)
        assert torch.equal(some.left, whole.left[:, :most]) and torch.equal(some.right, whole.right[:most])
        assert torch.equal(some.sigma, whole.sigma[:most])


def test_a_ratio_that_fails_leaves_the_dense_model(toy, monkeypatch):
    model, stats, data = copy.deepcopy(toy[0]), *toy[1:]
    before = dict(model.named_modules())
    reports = compress_at(model, "svd_llm_update", (0.3, 0.6), stats, **data)
    next(reports)
    assert isinstance(model.query, LowRankLinear)

    def breaks(*_, **__):
        raise ValueError("no luck")

    monkeypatch.setitem(surgery.RECOVERIES, "closed_form", breaks)
    with pytest.raises(ValueError, match="no luck"):
        next(reports)
    assert dict(model.named_modules()) == before


def test_bad_ratios_are_named_before_any_work():
    with pytest.raises(ValueError, match="removed = 1.5"):
        compress_at(Block(), "svd", [0.4, 1.5])
    with pytest.raises(ValueError, match="removed is empty"):
        compress_at(Block(), "svd", [])
