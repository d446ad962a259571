"""Contract of every ruler: whoever adds one to `WEIGHTINGS` inherits these tests."""

import pytest
import torch

from prehab_lib.decomposition import Decomposition, factorise
from prehab_lib.scale import lean
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import WEIGHTINGS, Weighting, decompose, decompose_all, error
from tests.helpers import Toy, layer, log_spaced, permuted, scaled
from tests.stack import refuses

SHAPES = [(32, 48, 500), (48, 32, 500), (40, 40, 500), (1, 6, 80), (6, 1, 80)]
SINGULAR = [(32, 48, 20), (48, 32, 20), (40, 40, 10)]  # few tokens
KERNELS = {"plain": factorise, "lean": lean.factorise}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
every_ruler = pytest.mark.parametrize("weighting", WEIGHTINGS)
every_layer = pytest.mark.parametrize("dims", [*SHAPES, *SINGULAR], ids=str)


@every_kernel
@every_ruler
@every_layer
def test_full_rank_gives_the_weight_back_and_errors_are_sums_of_dropped_values(weighting, dims, kernel):
    W, stats, _ = layer(*dims)
    whole, k = decompose(W, stats, weighting, kernel=kernel), min(dims[:2])
    assert whole.left.shape == (dims[0], k) and whole.right.shape == (k, dims[1])
    torch.testing.assert_close(whole.truncate(k).dense(), W, rtol=0, atol=1e-10)
    for rank in range(1, k + 1):
        measured = error(W, whole.truncate(rank).dense(), stats, weighting)
        assert measured == pytest.approx(whole.tail_error(rank), rel=1e-10, abs=1e-20 * float(whole.sigma[0]) ** 2)
    truth = torch.linalg.svdvals(WEIGHTINGS[weighting](stats).apply(W))
    torch.testing.assert_close(whole.sigma, truth, rtol=1e-9, atol=1e-12 * float(truth[0]))
    assert (whole.sigma.diff() <= 0).all()


@pytest.mark.parametrize("judge", WEIGHTINGS)
def test_nobody_beats_a_method_by_its_own_ruler(judge):
    W, stats, _ = layer(48, 32, 500)
    score = {name: error(W, decompose(W, stats, name).truncate(8).dense(), stats, judge) for name in WEIGHTINGS}
    assert min(score, key=score.get) == judge
    assert len(set(score.values())) == len(WEIGHTINGS)


@every_ruler
def test_scale_of_a_statistic_changes_nothing(weighting):
    W, stats, _ = layer(20, 16, 300)
    a, b = (decompose(W, s, weighting).truncate(5).dense() for s in (stats, scaled(stats, 1e4)))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-10)


@every_ruler
def test_permuted_inputs_commute(weighting):
    W, stats, _ = layer(20, 16, 300)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    a = decompose(W, stats, weighting).truncate(5).dense()[:, order]
    b = decompose(W[:, order], permuted(stats, order), weighting).truncate(5).dense()
    torch.testing.assert_close(b, a, rtol=0, atol=1e-9)


@every_ruler
def test_float32_option_costs_little(weighting):
    W, stats, _ = layer(48, 32, 500, spread=1.0)
    exact, fast = decompose(W, stats, weighting), decompose(W, stats, weighting, dtype=torch.float32)
    assert fast.left.dtype == torch.float32
    loss = error(W, fast.truncate(8).dense(), stats, weighting)
    assert loss == pytest.approx(exact.tail_error(8), rel=1e-5)
    torch.testing.assert_close(fast.truncate(32).dense().double(), W, rtol=0, atol=1e-4)


@every_kernel
@every_ruler
@pytest.mark.parametrize("rank_of_w", [0, 3])
def test_rank_deficient_weights_are_finite_and_exact(weighting, rank_of_w, kernel):
    W, stats, _ = layer(20, 16, 300)
    W = W[:, :rank_of_w] @ torch.randn(rank_of_w, 16, dtype=torch.float64)
    whole = decompose(W, stats, weighting, kernel=kernel)
    torch.testing.assert_close(whole.truncate(max(1, rank_of_w)).dense(), W, rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.truncate(16).dense(), W, rtol=0, atol=1e-9)


def test_two_sided_kernel():
    """Ŵ = P⁻¹ [P W Q]_r Q⁻¹, against the formula with both inverses."""
    W, stats, _ = layer(18, 14, 300, spread=1.0)
    P = torch.randn(18, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 4 * torch.eye(18)
    Q = torch.linalg.cholesky(stats.gram)
    U, s, Vt = torch.linalg.svd(P @ W @ Q, full_matrices=False)
    formula = torch.linalg.inv(P) @ U[:, :5] @ torch.diag(s[:5]) @ Vt[:5] @ torch.linalg.inv(Q)
    whole = decompose(W, stats, Weighting(P, Q))
    torch.testing.assert_close(whole.truncate(5).dense(), formula, rtol=0, atol=1e-9)
    torch.testing.assert_close(whole.truncate(14).dense(), W, rtol=0, atol=1e-9)
    assert error(W, formula, None, Weighting(P, Q)) == pytest.approx(whole.tail_error(5), rel=1e-10)


def test_bad_input_is_named():
    W, stats, _ = layer(8, 6, 100)
    model = Toy()
    with torch.no_grad():
        model.key.weight[0, 0] = float("inf")
    for call, message in (
        (lambda: decompose(W, stats, "grams"), "weighting = 'grams' is not known.*identity, .*gram"),
        (lambda: decompose(W, LayerStats(), "gram"), "SVD-LLM's ruler needs the statistic 'gram'.*stats.collect"),
        (lambda: decompose(W), "needs the statistic 'gram'"),
        (lambda: error(W, W), "needs the statistic 'gram'"),
        (lambda: decompose(W, stats).truncate(7), "rank = 7.*1 to 6"),
        (lambda: decompose(W, stats).truncate(0), "rank = 0"),
        (lambda: decompose_all(model, None, "identity"), "layer 'key'.*NaN or infinite"),
        (lambda: decompose_all(model, {"out": LayerStats()}, layers=["query"]), "layer 'query'.*no statistics"),
    ):
        refuses(call, ({}, message))


@every_kernel
def test_full_rank_under_a_gram_that_sees_one_direction_only(kernel):
    W, x = log_spaced(40, 40, 1e9), torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = decompose(W, LayerStats(gram=x @ x.T), "gram", kernel=kernel)
    torch.testing.assert_close(whole.truncate(40).dense(), W, rtol=0, atol=1e-14)


@every_ruler
def test_no_random_competitor_is_better(weighting):
    W, stats, _ = layer(12, 10, 300)
    best = decompose(W, stats, weighting).truncate(3)
    least, generator = error(W, best.dense(), stats, weighting), torch.Generator().manual_seed(0)
    for _ in range(50):
        nudge = 1e-2 * torch.randn(12, 3, dtype=torch.float64, generator=generator)
        assert error(W, (best.U + nudge) @ best.V, stats, weighting) > least


@every_ruler
def test_a_sliced_answer_is_the_answer_of_the_slice(weighting):
    W, stats, _ = layer(20, 16, 300)
    whole = decompose(W, stats, weighting)
    again = decompose(whole.truncate(7).dense(), stats, weighting)
    torch.testing.assert_close(again.truncate(7).dense(), whole.truncate(7).dense(), rtol=0, atol=1e-9)
    torch.testing.assert_close(again.truncate(4).dense(), whole.truncate(4).dense(), rtol=0, atol=1e-9)


def test_a_gram_that_waits_elsewhere_comes_to_the_weights_once_for_all_that_share_it(monkeypatch):
    """As on a GPU that could not hold all Grams: here weights without memory, and Grams on the CPU."""
    gram, rulers = torch.eye(24), []
    stats = {name: LayerStats(gram=gram) for name in ("query", "key")}

    def kernel(W, ruler, dtype, most):
        rulers.append(ruler)
        return Decomposition(W, W, W)

    decompose_all(Toy(n=24).to("meta"), stats, kernel=kernel)
    assert rulers[0].gram is rulers[1].gram and rulers[0].gram.is_meta and not gram.is_meta
    stats["query"].own = stats["key"].own = torch.ones(24)  # a statistic and a ruler of one's own
    monkeypatch.setitem(WEIGHTINGS, "own", lambda stats: Weighting(right=torch.diag(stats.need("own", "it"))))
    assert len(decompose_all(Toy(n=24), stats, "own")) == 2
