"""The loss change of one component: against finite differences, other routes to the same number, and its invariances."""

import copy
import itertools

import pytest
import torch

from prehab_lib import weightings
from prehab_lib.decomposition import factorise
from prehab_lib.evaluate import classification_loss
from prehab_lib.rivals.shared import loss_changes, sigma_gradients
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.stats import LayerStats, collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import WEIGHTINGS, decompose, decompose_all
from tests.helpers import layer
from tests.stack import Stack, refuses, stack_batches


def with_gradient(m: int, n: int) -> tuple[torch.Tensor, LayerStats]:
    W, stats, _ = layer(m, n, 200)
    stats.grad = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    return W, stats


def test_finite_differences_of_the_loss_say_the_same():
    """A model in float64, so that a difference of two losses is a number."""
    model, h = Stack().double(), 1e-5
    batches = [(x.double(), labels) for x, labels in stack_batches(count=5)]
    stats = collect(model, batches, needs={"gram", "kron_in", "kron_out", "grad"}, task_loss=classification_loss)

    def loss_along(name, direction, step) -> float:
        moved = copy.deepcopy(model)
        moved.get_submodule(name).weight.data += step * direction
        with torch.no_grad():
            return float(sum(classification_loss(moved, batch) for batch in batches) / len(batches))

    for ruler in ("identity", "gram", "kronecker"):
        cuts = decompose_all(model, stats, ruler, ["blocks.0.up", "blocks.2.down", "head"])
        changes = loss_changes(cuts, stats)
        slopes = sigma_gradients(changes, cuts)
        for (name, cut), i in itertools.product(cuts.items(), (0, 3, -1)):
            component = torch.outer(cut.left[:, i], cut.right[i])
            sides = (-component, changes[name][i]), (component / cut.sigma[i], slopes[name][i])
            for direction, expected in sides:
                size = float(direction.norm())
                ahead, back = (loss_along(name, direction / size, step) for step in (h, -h))
                slope = pytest.approx(float(expected) / size, rel=1e-4, abs=1e-8)
                assert (ahead - back) / (2 * h) == slope, (ruler, name, i)


def test_the_sum_is_the_gradient_along_the_weight_under_every_ruler():
    for ruler, shape in itertools.product(WEIGHTINGS, [(14, 10), (10, 14), (9, 9)]):
        W, stats = with_gradient(*shape)
        changes = loss_changes({"fc": decompose(W, stats, ruler)}, {"fc": stats})["fc"]
        assert changes.shape == (min(shape),) and changes.dtype == torch.float64
        expected = pytest.approx(-float((stats.grad * W).sum()), abs=1e-9 * float(changes.abs().sum()))
        assert float(changes.sum()) == expected, (ruler, shape)


@pytest.mark.parametrize("shape", [(14, 10), (10, 14)])
def test_the_papers_route_by_triangular_solves_says_the_same(shape):
    W, stats = with_gradient(*shape)
    cut = {"fc": decompose(W, stats, "gram")}
    L = torch.linalg.cholesky(stats.gram)
    U, sigma, Vt = torch.linalg.svd(W @ L, full_matrices=False)
    H = torch.linalg.solve_triangular(L, stats.grad.T, upper=False).T  # G L⁻ᵀ
    g = (U * (H @ Vt.T)).sum(0)
    changes = loss_changes(cut, {"fc": stats})
    torch.testing.assert_close(sigma_gradients(changes, cut)["fc"], g, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(changes["fc"], -sigma * g, rtol=1e-6, atol=1e-9)


def test_a_weight_of_low_rank_has_components_that_cost_nothing():
    W, stats = with_gradient(12, 10)
    cut = {"fc": decompose(W[:, :3] @ W[:3], stats, "gram")}
    changes = loss_changes(cut, {"fc": stats})
    assert (changes["fc"][:3].abs() > 1e-6).all() and (changes["fc"][3:].abs() < 1e-9).all()
    slopes = sigma_gradients(changes, cut)["fc"]
    assert torch.isfinite(slopes[:3]).all() and torch.isnan(slopes[cut["fc"].sigma == 0]).all()


@pytest.fixture
def made(monkeypatch):
    calls = []
    decompose = weightings.decompose
    monkeypatch.setattr(weightings, "decompose", lambda *args, **how: calls.append(1) or decompose(*args, **how))
    return calls


def test_a_lazy_decomposition_is_made_once_and_shared_with_surgery(given, made):
    eager = loss_changes(given["decompositions"], given["stats"])
    for keep in (0, 2**31):
        lazy = decompose_lazily(given["model"], given["stats"], keep=keep, kernel=factorise)
        made.clear()
        changes = loss_changes(lazy, given["stats"])
        assert all(torch.equal(changes[name], eager[name]) for name in eager)
        assert len(made) == len(lazy) == 8
    compress(copy.deepcopy(given["model"]), "zs_svd", 0.5, given["stats"], decompositions=lazy)
    assert len(made) == 8  # with room, the ones that the changes came from


def test_a_missing_gradient_is_named_before_anything_is_factorised(given, made):
    lazy = decompose_lazily(given["model"], given["stats"])
    refuses(
        lambda stats: loss_changes(lazy, stats),
        ({"stats": given["stats"] | {"head": LayerStats()}}, "layer 'head' needs the statistic 'grad'"),
        ({"stats": None}, "layer 'blocks.0.up' needs the statistic 'grad'"),
    )
    assert not made
