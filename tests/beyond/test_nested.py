"""Ordered factors: the mask is a sum over prefixes, and a level of one stored model is a slice of it."""

import copy

import pytest
import torch

from prehab_lib.beyond import nested
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.layers import replace_module
from prehab_lib.rehab import rehab
from prehab_lib.surgery import compress, save
from prehab_lib.tasks.perplexity import language_loss
from prehab_lib.tasks.small_llama import small_llama
from tests.helpers import Toy, skewed
from tests.stack import same

IDS = {"input_ids": torch.randint(2, 40, (8, 12), generator=torch.Generator().manual_seed(0))}
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 1.5], dtype=torch.float64)


@pytest.fixture
def cut():
    model = small_llama(40, depth=1, width=32, heads=2, kv_heads=1).eval()
    compress(model, "svd", 0.3)
    return model


def prefix_losses(F, G, A):
    return torch.stack([(A - F[:, :k] @ G[:, :k].T).square().sum() for k in range(1, F.shape[1] + 1)])


def test_the_mask_is_the_weighted_sum_over_prefixes_and_so_is_its_gradient():
    F, G, A = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((9, 5), (7, 5), (9, 7)))
    masked = nested.joint_loss(F, G, A, WEIGHTS)
    explicit = WEIGHTS @ prefix_losses(F, G, A) - WEIGHTS.sum() * A.square().sum()
    torch.testing.assert_close(masked, explicit)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (F, G)) for loss in (masked, explicit)))


def test_factors_of_the_svd_are_stationary_and_rotated_ones_of_the_same_product_are_not():
    A = skewed(12, 10).double()
    U, sigma, Vt = torch.linalg.svd(A, full_matrices=False)
    F, G = U[:, :5] * sigma[:5].sqrt(), Vt[:5].T * sigma[:5].sqrt()
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    slopes = []
    for one in (torch.eye(5, dtype=torch.float64), turn):
        factors = [(F @ one).requires_grad_(), (G @ one).requires_grad_()]
        slope = torch.autograd.grad(nested.joint_loss(*factors, A, WEIGHTS), factors)
        slopes.append(sum(float(part.norm()) for part in slope) / float(A.square().sum()))
    assert slopes[0] < 1e-12 and slopes[1] > 1e-3


def test_converged_prefixes_are_within_one_per_cent_of_the_best_and_without_nesting_they_are_not():
    A = torch.diag(torch.linspace(3.0, 1.0, 8, dtype=torch.float64))
    best = torch.stack([torch.diag(A)[k:].square().sum() for k in range(1, 5)])
    excess = {}
    for name, weights in (("nested", torch.ones(4)), ("plain", torch.tensor([1e-12, 1e-12, 1e-12, 1.0]))):
        F, G = (torch.randn(8, 4, dtype=torch.float64).mul(0.5).requires_grad_() for _ in "FG")
        optimizer = torch.optim.Adam([F, G], lr=0.02)
        for _ in range(800):
            optimizer.zero_grad()
            nested.joint_loss(F, G, A, weights.double()).backward()
            optimizer.step()
        excess[name] = (prefix_losses(F, G, A) / best - 1).detach()
    assert excess["nested"].abs().max() < 0.01
    assert excess["plain"][:-1].max() > 0.05 and abs(excess["plain"][-1]) < 0.01


def test_a_level_is_a_slice_of_the_stored_model_and_level_one_is_the_model(cut, tmp_path):
    save(cut, tmp_path / "model")
    whole = cut(**IDS).logits
    for level in (0.3, 0.5, 1):
        loaded, built = nested.load_at(tmp_path / "model", level), copy.deepcopy(cut)
        for name, layer in nested.low_rank_layers(cut).items():
            rank = nested.rank_at(layer.rank, level)
            factors = Factors(layer.U.weight[:, :rank], layer.V.weight[:rank])
            replace_module(built, name, LowRankLinear.from_factors(factors, layer.bias))
        assert same(loaded, built)
        with nested.at_level(cut, level):
            torch.testing.assert_close(cut(**IDS).logits, loaded(**IDS).logits)
        assert torch.equal(cut(**IDS).logits, whole), "the hooks are gone"
        assert torch.equal(loaded(**IDS).logits, whole) == (level == 1)


def test_gradients_reach_the_first_components_alone(cut):
    with nested.at_level(cut, 0.25):
        language_loss(cut, IDS).backward()
    for layer in nested.low_rank_layers(cut).values():
        kept, reached = nested.rank_at(layer.rank, 0.25), layer.V.weight.grad.any(1)
        assert reached[:kept].all() and not reached[kept:].any() and not layer.U.weight.grad[:, kept:].any()


def test_nested_training_serves_a_low_level_better_and_its_loss_is_the_mixture(cut):
    loss, found = nested.Nested(language_loss, [0.25], alpha=0.75), {}
    whole, low = language_loss(cut, IDS), language_loss(nested.slice_to(copy.deepcopy(cut), 0.25), IDS)
    torch.testing.assert_close(loss(cut, IDS), 0.25 * whole + 0.75 * low)
    for name, one in (("plain", language_loss), ("nested", loss)):
        model = copy.deepcopy(cut)
        rehab(model, one, [IDS], rank=4, steps=15, lr=1e-2, order="joint")
        found[name] = language_loss(nested.slice_to(model.eval(), 0.25), IDS).item()
    assert found["nested"] < found["plain"] - 0.01


def test_bad_input_is_refused_in_words(cut):
    assert [nested.rank_at(100, level) for level in (0.29, 1, 1e-9)] == [29, 100, 1]
    with pytest.raises(ValueError, match="level = 0: give the fraction"):
        nested.rank_at(5, 0)
    with pytest.raises(ValueError, match=r"weights = \[1.0, 0.0\]: give one above 0"):
        nested.masks(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="run surgery.compress first"):
        nested.slice_to(Toy(), 0.5)
    for levels, alpha in (([], 0.5), ([0.5], 2), ([1.5], 0.5)):
        with pytest.raises(ValueError, match="level"):
            nested.Nested(language_loss, levels, alpha=alpha)
