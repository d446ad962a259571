"""The 8-bit grid, and the layer that computes with what lies on it."""

import pytest
import torch
from torch import nn

from prehab_lib.rivals.packing import Packing, absmax_scales, from_bits, rounded, to_bits, to_codes
from prehab_lib.rivals.quantised import quantise, stored_bytes
from tests.families import distance
from tests.helpers import random_factors

LAYOUTS = ("int8", "remap")


def vectors(k=9, d=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(k, d, dtype=torch.float64, generator=generator) * torch.logspace(-9, 5, k).double()[:, None]


def test_no_entry_moves_by_more_than_half_a_step():
    F = vectors()
    scale = absmax_scales(F)
    assert scale.dtype == torch.float16 and to_codes(F, scale).dtype == torch.int8
    assert ((rounded(F).double() - F).abs() <= scale.double()[:, None] / 2).all()
    assert (to_codes(F, scale).abs() <= 127).all()
    assert (scale.double() >= F.abs().amax(1) / 127).all()
    normal = F.abs().amax(1) > 127 * 6.2e-5  # fp16 has its full precision there
    assert (scale.double()[normal] <= F.abs().amax(1)[normal] / 127 * 1.001).all()
    assert (to_codes(F, scale).abs().amax(1)[normal] >= 126).all()  # all levels are in use


def test_zero_vectors_stay_zero_and_what_fp16_cannot_say_is_refused():
    F = vectors(3)
    F[1] = 0
    assert torch.equal(rounded(F)[1], torch.zeros(40)) and absmax_scales(F)[1] == 0
    for bad in (float("nan"), float("inf"), 1e8):
        F[2, 5] = bad
        with pytest.raises(ValueError, match="NaN, infinite or huge entries: no fp16 scale fits it"):
            rounded(F)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_bits_come_back(count):
    mask = torch.randint(2, (count,), generator=torch.Generator().manual_seed(count)).bool()
    bits = to_bits(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-count // 8) and torch.equal(from_bits(bits, count), mask)


# The layers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("m", "n"), [(20, 12), (12, 20), (16, 16)])
def test_a_low_rank_layer_computes_with_its_rounded_factors(layout, m, n):
    model = nn.Sequential(random_factors(m, n, 5))
    U, V, bias = model[0].U.weight.detach().clone(), model[0].V.weight.detach().clone(), model[0].U.bias
    assert quantise(model, layout) is model
    Q = {"U": rounded(U.T).T, "V": rounded(V)}
    if layout == "remap":  # what the larger factor has beyond the smaller side is fp16
        larger = {"U": rounded(U[:n].T).T, "V": rounded(V[:, :m])}
        Q["U"] = torch.cat([larger["U"], U[n:].half().float()]) if m >= n else Q["U"]
        Q["V"] = Q["V"] if m >= n else torch.cat([larger["V"], V[:, m:].half().float()], dim=1)
    assert torch.equal(model[0].U.weight, Q["U"]) and torch.equal(model[0].V.weight, Q["V"])
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), x @ Q["V"].T @ Q["U"].T + bias, rtol=1e-5, atol=1e-4)
    assert model[0].U.bias is bias and isinstance(bias, nn.Parameter)
    assert [name for name, _ in model.named_parameters()] == ["0.U.bias"]
    bytes_ = {"int8": 5 * (m + n), "remap": 2 * 5 * max(m, n)}[layout] + 4 * 5
    assert stored_bytes(model) == bytes_ + 4 * m
    kinds = {name: tensor.dtype for name, tensor in model.named_buffers()}
    assert kinds["0.U.codes"] == kinds["0.V.codes"] == torch.int8
    assert {dtype for name, dtype in kinds.items() if "codes" not in name} == {torch.float16}


def test_a_dense_layer_has_a_scale_a_row():
    model = nn.Sequential(nn.Linear(12, 20))
    W, x = model[0].weight.detach().clone(), torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = model(x)
    quantise(model)
    assert torch.equal(model[0].weight, rounded(W)) and not torch.equal(rounded(W), W)
    assert 0 < distance(model(x).detach(), exact) < 0.02
    assert stored_bytes(model) == 12 * 20 + 2 * 20 + 4 * 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_move_what_is_computed_and_nothing_stored(dtype):
    model = nn.Sequential(random_factors(20, 12, 5))
    quantise(model, "remap")
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model.requires_grad_(False)
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    exact, size = model(x), stored_bytes(model)
    model.to(dtype)
    assert model(x.to(dtype)).dtype == dtype and model[0].U.weight.dtype == model[0].weight.dtype == dtype
    assert distance(model(x.to(dtype)).float(), exact) < {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6)
    for name, tensor in model.to("cpu").named_buffers():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert stored_bytes(model) - size == 20 * (torch.finfo(dtype).bits // 8 - 4)  # the bias alone
    model.float()
    assert torch.equal(model[0].V.weight, rounded(random_factors(20, 12, 5).V.weight.detach()))


def test_a_description_of_nothing_is_refused():
    for wrong in (dict(axis="diagonal"), dict(axis="rows", dtype="float33"), dict(axis="rows", dtype="nn")):
        with pytest.raises(ValueError, match="describes no packed matrix"):
            Packing(vectors=3, entries=4, **wrong)
