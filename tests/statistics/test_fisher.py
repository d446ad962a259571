"""Kronecker factors of the Fisher matrix, against the matrix itself."""

from functools import partial

import pytest
import torch
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.stats import collect
from prehab_lib.weightings import decompose
from tests.helpers import Toy, toy_batches
from tests.stack import refuses
from tests.statistics.test_gradients import slow


class Planted(nn.Module):
    """One layer whose s-th sample has exactly the gradient target_s x_sᵀ."""

    def __init__(self, m, n):
        super().__init__()
        self.layer = nn.Linear(n, m, bias=False).double()

    def forward(self, x, target=None):
        return self.layer(x)


def planted_loss(model, batch):
    return (model(batch["x"]) * batch["target"]).sum(-1).mean()


def root(k, seed):
    Z = torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.cholesky(Z @ Z.T / k + 0.1 * torch.eye(k, dtype=torch.float64))


def test_the_iteration_recovers_a_planted_product():
    m, n = 5, 7
    L_A, L_B = root(n, 0), root(m, 1)
    i, j = torch.meshgrid(torch.arange(m), torch.arange(n), indexing="ij")
    x, target = L_A.T[j.flatten()] * (m * n) ** 0.5, L_B.T[i.flatten()]  # mean of vec(G) vec(G)ᵀ is A ⊗ B exactly
    batches, needs = [{"x": x, "target": target}], {"kron_in", "kron_out"}
    stats = collect(Planted(m, n), batches, needs=needs, task_loss=planted_loss)["layer"]
    truth = torch.kron(L_A @ L_A.T, L_B @ L_B.T)
    found = torch.kron(stats.kron_in, stats.kron_out)
    assert float((found - truth).norm() / truth.norm()) < 1e-10
    assert float(stats.kron_in.diagonal().mean()) == pytest.approx(1)


def test_the_iteration_finds_the_nearest_product_of_a_real_fisher():
    """Against the leading singular pair of the rearranged Fisher matrix (Van Loan and Pitsianis), formed in full."""
    model, batches = Toy().double(), [(x.double(), y) for x, y in toy_batches(3, 20)]
    stats = collect(model, batches, ["query"], {"kron_in", "kron_out"}, classification_loss, iterations=60)["query"]
    G = slow(model, batches, classification_loss, "query")  # (samples, m, n)
    rearranged = torch.einsum("sij,skl->ikjl", G, G).flatten(2).flatten(0, 1) / len(G)  # (m², n²)
    s = torch.linalg.svdvals(rearranged)
    best = float(s[1:].square().sum() ** 0.5)
    product = torch.outer(stats.kron_out.flatten(), stats.kron_in.flatten())
    assert float((rearranged - product).norm()) == pytest.approx(best, rel=1e-3)
    for factor in (stats.kron_in, stats.kron_out):
        assert torch.equal(factor, factor.T) and float(torch.linalg.eigvalsh(factor)[0]) > -1e-9 * float(factor.norm())


def test_bad_options_are_named():
    known = "fisher = 'mean' is not known: choose one of sample, batch"
    call = partial(collect, Toy(), toy_batches(1), needs={"kron_in"}, task_loss=classification_loss)
    refuses(call, ({"fisher": "mean"}, known), ({"iterations": 0}, "iterations = 0"))


def test_zero_gradients_give_zero_factors_and_a_usable_ruler():
    model = Planted(3, 4)
    batch = {"x": torch.randn(40, 4, dtype=torch.float64), "target": torch.zeros(40, 3, dtype=torch.float64)}
    needs = {"kron_in", "kron_out", "fisher_in", "fisher_out"}
    stats = collect(model, [batch], needs=needs, task_loss=planted_loss)["layer"]
    W = model.layer.weight.detach()
    for ruler in ("kronecker", "fisher", "fisher_out", "fisher_two_sided"):
        torch.testing.assert_close(decompose(W, stats, ruler).truncate(3).dense(), W, rtol=0, atol=1e-10)
