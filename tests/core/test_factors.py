import pytest
import torch
from torch import nn

from prehab_lib.factors import Factors, LowRankLinear


@pytest.fixture
def factors():
    torch.manual_seed(0)
    return Factors(torch.randn(7, 3, dtype=torch.float64) * 100, torch.randn(3, 5, dtype=torch.float64))


def test_balancing_moves_only_the_split(factors):
    assert factors.rank == 3 and factors.numel == 3 * (7 + 5)
    balanced = factors.balanced()
    torch.testing.assert_close(balanced.dense(), factors.dense())
    torch.testing.assert_close(balanced.U.norm(dim=0), balanced.V.norm(dim=1))
    zero = Factors(torch.zeros(4, 2), torch.ones(2, 3)).balanced()
    assert torch.isfinite(zero.U).all() and torch.isfinite(zero.V).all()


@pytest.mark.parametrize("with_bias", [True, False])
def test_layer_computes_as_the_dense_product(factors, with_bias):
    bias = torch.randn(7, dtype=torch.float64) if with_bias else None
    layer = LowRankLinear.from_factors(factors, bias)
    x = torch.randn(4, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, factors.dense(), bias), rtol=1e-12, atol=1e-12)
    assert (layer.in_features, layer.out_features, layer.rank) == (5, 7, 3)
    assert layer.bias is None if bias is None else torch.equal(layer.bias, bias)
    assert {*dict(layer.named_parameters())} == {"U.weight", "V.weight", *(["U.bias"] if with_bias else [])}


def test_a_layer_made_of_factors_draws_no_random_number(factors):
    before = torch.get_rng_state()
    layer = LowRankLinear.from_factors(factors, torch.zeros(7, dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.device.type == "cpu" and p.dtype == torch.float64 and p.requires_grad for p in layer.parameters())


def test_factors_that_do_not_multiply_are_refused():
    with pytest.raises(ValueError, match="do not multiply"):
        Factors(torch.zeros(4, 2), torch.zeros(3, 5))
