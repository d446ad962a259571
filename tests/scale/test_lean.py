"""The kernel for large models: the plain one's answers, counted operations, and what round-off may cost."""

from collections import Counter
from functools import partial

import pytest
import torch

from prehab_lib.budget import rank_for
from prehab_lib.scale import lean
from prehab_lib.stats import LayerStats
from prehab_lib.weightings import WEIGHTINGS, Weighting, decompose, error
from tests.core.test_weightings import KERNELS, every_kernel
from tests.families import distance
from tests.helpers import layer, log_spaced
from tests.stack import refuses

COUNTED = ("eigh", "svd", "qr", "inv", "solve", "cholesky_ex", "solve_triangular")
SHAPES = {"square": (32, 32), "tall": (48, 32), "wide": (32, 48), "very wide": (16, 48)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
cut_lean = partial(decompose, kernel=lean.factorise)


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


@every_dtype
@pytest.mark.parametrize("rows", [500, 10], ids=["regular", "singular"])
@pytest.mark.parametrize("shape", [*SHAPES.values(), (1, 6), (6, 1)], ids=str)
def test_both_kernels_say_the_same(shape, rows, dtype):
    W, stats, _ = layer(*shape, rows, spread=1.0)
    W = W.to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for ruler in WEIGHTINGS:
        ours, theirs = (decompose(W, stats, ruler, dtype=dtype, kernel=kernel) for kernel in KERNELS.values())
        point = f"{ruler} {shape} {rows} {dtype}"
        assert ours.left.dtype == theirs.left.dtype == dtype, point
        gap = float((ours.sigma - theirs.sigma).abs().max())
        assert gap <= tolerance * float(theirs.sigma[0]), f"{point}: sigma differs by {gap}"
        seen = min(rows, *shape) if ruler != "identity" else min(shape)
        for rank in {1, seen // 2 or 1, seen, min(shape)}:  # between, only the order of the weights decides
            found = distance(ours.truncate(rank).dense(), theirs.truncate(rank).dense())
            assert found < 100 * tolerance, f"{point}: rank {rank} differs by {found}"
        for name, whole in zip(KERNELS, (ours, theirs), strict=True):
            assert distance(whole.truncate(min(shape)).dense(), W) < tolerance, f"{point}: {name} lost W"


@every_kernel
def test_what_no_ruler_sees_is_ordered_by_the_weights(kernel):
    """A Gram of rank 3: three components carry something, the others follow largest weight first, and nothing is lost."""
    W, stats, _ = layer(16, 48, 3)
    whole = decompose(W, stats, kernel=kernel)
    assert float(whole.sigma[2]) > 0 and float(whole.sigma[3:].max()) <= 1e-12 * float(whole.sigma[0])
    assert error(W, whole.truncate(3).dense(), stats) <= 1e-15 * float(whole.sigma[0]) ** 2
    weights = whole.right[3:].norm(dim=1)
    assert (weights.diff() <= 1e-12).all() and weights[0] > 2 * weights[-1]
    torch.testing.assert_close(whole.truncate(16).dense(), W, rtol=0, atol=1e-11)


@every_kernel
@every_shape
@every_dtype
@pytest.mark.parametrize("singular", [False, True])
def test_fewer_components_are_the_first_of_all(dtype, singular, shape, kernel):
    W, stats, _ = layer(*shape, rows=10 if singular else 400)
    for ruler in ("gram", "gram_logit", "identity"):
        whole = decompose(W, stats, ruler, dtype=dtype, kernel=kernel)
        scale = float(whole.sigma.double().square().sum())
        for most in (1, 5, 15, min(shape)):
            point = f"{ruler}, {most} components"
            some = decompose(W, stats, ruler, dtype=dtype, most=most, kernel=kernel)
            assert some.left.shape == (shape[0], most) and some.right.shape == (most, shape[1]), point
            assert some.shape == shape, point
            ours, theirs = some.truncate(most), whole.truncate(most)
            assert torch.equal(ours.U, theirs.U) and torch.equal(ours.V, theirs.V), point
            torch.testing.assert_close(some.sigma, whole.sigma[:most], msg=point)
            for rank in (1, most):
                tail = pytest.approx(whole.tail_error(rank), rel=1e-3, abs=1e-9 * scale)
                assert some.tail_error(rank) == tail, point
            if most < min(shape):
                refuses(some.truncate, ({"rank": most + 1}, f"rank = {most + 1}: this layer has 1 to {most}"))


@every_kernel
@every_shape
def test_float32_costs_little_under_an_ill_conditioned_gram(shape, kernel):
    """Condition 1e8: the error of float32's answer, beyond the least there is, at the ranks of four ratios."""
    W, _, _ = layer(*shape, 10)
    n = shape[1]
    turn = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    G = (turn * torch.logspace(0, -8, n, dtype=torch.float64)) @ turn.T
    stats = LayerStats(gram=(G + G.T) / 2)
    exact, single = (decompose(W, stats, dtype=dtype, kernel=kernel) for dtype in (torch.float64, torch.float32))
    assert single.left.dtype == single.right.dtype == single.sigma.dtype == torch.float32
    for removed in (0.2, 0.4, 0.6, 0.8):
        rank = rank_for(shape, removed)
        excess = error(W, single.truncate(rank).dense(), stats) / exact.tail_error(rank) - 1
        # Below zero: products rounded to float32 are not quite of that rank.
        assert -1e-7 < excess < 1e-4, f"{removed:.0%} removed: {excess}"
    torch.testing.assert_close(single.sigma.double(), exact.sigma, rtol=0, atol=1e-4 * float(exact.sigma[0]))


@every_kernel
def test_bad_input_is_named(kernel):
    W, stats, _ = layer(8, 6, 100)
    refuses(
        partial(decompose, stats=stats, kernel=kernel),
        (dict(W=W * float("nan"), weighting="identity"), "NaN or infinite"),
        (dict(W=W.flatten(), weighting="identity"), "a weight is a matrix"),
        (dict(W=W.T, weighting="gram"), "right root has shape"),
        (dict(W=W.T, weighting="kronecker"), "left root has shape"),
        (dict(W=W, most=0), "most = 0"),
    )


@every_shape
@every_dtype
def test_the_regular_case_is_one_eigendecomposition_of_the_small_side(shape, dtype, calls, monkeypatch):
    W = layer(*shape, 10)[0]
    stats = LayerStats(gram=layer(*shape, 5000, spread=0.2)[1].gram)
    if shape[0] == shape[1]:
        W = W + 8 * torch.eye(len(W))  # a random square matrix is nearly singular
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda K, **out: sizes.append(K.shape) or eigh(K, **out))
    cut_lean(W, stats, dtype=dtype)
    assert sizes == [(min(shape), min(shape))]
    assert not calls["svd"] + calls["inv"] + calls["qr"] + calls["solve"]


def test_a_wide_weight_costs_no_root_and_the_rootless_way_says_what_the_root_says(calls):
    W, stats, _ = layer(16, 48, 30)  # 30 tokens: of rank 30
    whole = cut_lean(W, stats)
    assert calls == {"eigh": 1}
    torch.testing.assert_close(whole.truncate(16).dense(), W, rtol=0, atol=1e-10)
    W, stats, _ = layer(16, 48, 600)
    ours, theirs = cut_lean(W, stats), cut_lean(W, None, Weighting(right=stats.gram_root()))
    torch.testing.assert_close(ours.sigma, theirs.sigma, rtol=1e-9, atol=0)
    for rank in (1, 5, 12):
        torch.testing.assert_close(ours.truncate(rank).dense(), theirs.truncate(rank).dense(), rtol=0, atol=1e-9)


def test_what_is_noise_beside_its_own_weight_follows_what_is_seen():
    """The first row carries more, and round-off of its far larger unseen part could carry as much: the second comes first."""
    W, G = torch.zeros(2, 8, dtype=torch.float64), torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]).double())
    W[0, 0], W[0, 7], W[1, 1] = 1, 1e9, 0.5
    whole = cut_lean(W, LayerStats(gram=G))
    assert whole.sigma.tolist() == [0.5, 0]
    torch.testing.assert_close(whole.truncate(1).dense()[1], W[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.truncate(2).dense(), W, rtol=1e-15, atol=1e-6)


def test_the_first_components_where_the_gram_hardly_sees_some():
    """Eight rows carry little beside what the Gram does not see of them: they count as unseen, and follow by their weights."""
    seen = torch.cat([torch.arange(8, 0, -1), 1e-5 * torch.arange(8, 0, -1)]).double()
    unseen = 1e3 * torch.randn(8, 32, dtype=torch.float64)
    W = torch.cat([seen.diag(), torch.cat([torch.zeros(8, 32, dtype=torch.float64), unseen])], dim=1)  # (16, 48)
    stats = LayerStats(gram=torch.cat([torch.ones(16), torch.zeros(32)]).double().diag())
    whole = cut_lean(W, stats)
    assert (whole.sigma > 0).tolist() == 8 * [True] + 8 * [False]
    for most in (8, 12):
        some = cut_lean(W, stats, most=most)
        assert torch.equal(some.left, whole.left[:, :most]) and torch.equal(some.right, whole.right[:most])
        assert torch.equal(some.sigma, whole.sigma[:most])


def test_spectra_over_many_orders_are_turned_again_and_found():
    """Singular values from 1 to 1e-10: more than squares can hold at once."""
    for shape in ((40, 60), (60, 40), (24, 60)):
        W, p = log_spaced(*shape, 1e10), min(shape)
        whole = lean.factorise(W, Weighting())
        truth = torch.logspace(0, -10, p, dtype=torch.float64)
        torch.testing.assert_close(whole.sigma, truth, rtol=0, atol=2e-11)
        torch.testing.assert_close(whole.truncate(p).dense(), W, rtol=0, atol=1e-14)


def test_equal_singular_values_may_come_in_any_order():
    """A gap at `most` and equals before it: the shortened way may have to put its rows in order."""
    W = torch.cat([torch.eye(6), torch.zeros(6, 14)], dim=1).double()
    W[4:] *= 0.1
    for most in (1, 4, 5):
        some = lean.factorise(W, Weighting(), most=most)
        torch.testing.assert_close(some.sigma, torch.tensor([1.0, 1, 1, 1, 0.1, 0.1]).double()[:most])
        assert some.tail_error(most) == pytest.approx(float(W.square().sum() - some.sigma.square().sum()))


def test_more_components_than_there_are_is_all_of_them():
    W = torch.randn(6, 4, dtype=torch.float64)
    assert len(lean.factorise(W, Weighting(), most=9).sigma) == 4
