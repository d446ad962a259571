import itertools

import pytest
import torch

from prehab_lib.fast import FAST, tangents
from prehab_lib.fast.tangents import COLD
from prehab_lib.surrogates import SURROGATES
from tests.helpers import cosine, log_spaced


def fast_form(name, L):
    """L (b, n, n) -> the fast surrogate, in float32."""
    metric = L @ L.mT if FAST[name].metric_is == "gram" else L
    return FAST[name](metric.float())


def exact(name, W, L):
    """Values (b,) and gradients (b, m, n) by the float64 decomposition."""
    W = W.double().requires_grad_()
    values = torch.stack([SURROGATES[name](w @ root.double()) for w, root in zip(W, L, strict=True)])
    (gradients,) = torch.autograd.grad(values.sum(), W)
    return values.detach(), gradients


def layers(m, n, count=3, condition=1e3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(count, m, n, dtype=torch.float64, generator=generator)
    return W.float(), torch.stack([log_spaced(n, n, condition, seed=seed + i) for i in range(count)])


@pytest.mark.parametrize("name", FAST)
def test_value_and_gradient_are_those_of_the_decomposition(name):
    """The bounds of the docstrings: value 1e-3, cosine above 0.999, for roots of condition up to 1e6."""
    for shape, condition in itertools.product(((16, 24), (24, 16), (20, 20)), (1.0, 1e3, 1e6)):
        W, L = layers(*shape, condition=condition)
        surrogate = fast_form(name, L)
        for _ in range(3):
            tangent = surrogate(W)
        values, gradients = exact(name, W, L)
        torch.testing.assert_close(tangent.value.double(), values, rtol=1e-3, atol=0)
        for ours, theirs in zip(tangent.gradient, gradients, strict=True):
            assert cosine(ours, theirs) > 0.999, (shape, condition)
            assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=0.02), (shape, condition)


@pytest.mark.parametrize("name", FAST)
def test_an_ill_conditioned_weight_keeps_the_bounds_or_falls_back(name):
    W, L = torch.stack([log_spaced(24, 24, 1e6)]).float(), torch.eye(24, dtype=torch.float64)[None]
    surrogate = fast_form(name, L)
    surrogate(W)
    tangent = surrogate(W)
    values, gradients = exact(name, W, L)
    assert float(tangent.value[0]) == pytest.approx(float(values[0]), rel=1e-3)
    assert cosine(tangent.gradient[0], gradients[0]) > 0.999
    assert bool(tangent.fell_back[0]) == (name != "stable_rank")


def test_stable_rank_is_warm_from_step_to_step(monkeypatch):
    """The first call may take many rounds; the next take one or two each, though the weight moves; after a jump many again."""
    rounds = []
    top = tangents.top
    monkeypatch.setattr(tangents, "top", lambda A, B, U, steps: rounds.append(steps) or top(A, B, U, steps))
    W, L = layers(40, 30, count=2)
    surrogate = fast_form("stable_rank", L)
    surrogate(W)
    cold = sum(rounds)
    assert 4 < cold <= COLD
    rounds.clear()
    for step in range(5):
        moved = W + 1e-4 * step * torch.sign(W)
        tangent = surrogate(moved)
    assert 5 <= sum(rounds) <= 10 and not tangent.fell_back.any()
    torch.testing.assert_close(tangent.value.double(), exact("stable_rank", moved, L)[0], rtol=1e-3, atol=0)
    rounds.clear()
    other = torch.stack([W[0], layers(40, 30, count=1, seed=9)[0][0]])
    tangent = surrogate(other)
    assert sum(rounds) > 4 and not tangent.fell_back.any()
    torch.testing.assert_close(tangent.value.double(), exact("stable_rank", other, L)[0], rtol=1e-3, atol=0)
    monkeypatch.setattr(tangents, "COLD", 1)
    assert fast_form("stable_rank", L)(W).fell_back.all(), "rounds that do not suffice are said"


@pytest.mark.parametrize("name", FAST)
def test_zero_weights_have_value_and_gradient_zero_and_ratios_pull_across_the_scale_alone(name):
    W, L = layers(12, 9)
    W[0] = 0
    tangent = fast_form(name, L)(W)
    assert float(tangent.value[0]) == 0 and not tangent.gradient[0].any()
    assert torch.isfinite(tangent.gradient).all() and float(tangent.value[1]) > 0
    along = (tangent.gradient * W).sum((1, 2))
    limit = 1e-3 * tangent.gradient.norm(dim=(1, 2)) * W.norm(dim=(1, 2))
    assert name == "nuclear" or (along.abs() <= limit).all()


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12, 1e20])
@pytest.mark.parametrize("name", FAST)
def test_the_size_of_the_weights_means_nothing(name, scale):
    W = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    one, other = (FAST[name](torch.eye(10)[None])(by * W[None]) for by in (1.0, scale))
    power = 1 if name == "nuclear" else 0
    torch.testing.assert_close(other.value / scale**power, one.value, rtol=1e-4, atol=0)
    torch.testing.assert_close(other.gradient * scale / scale**power, one.gradient, rtol=1e-3, atol=1e-3)
