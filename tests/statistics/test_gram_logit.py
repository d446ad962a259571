"""IO-SVD's ruler, made of the input Gram and the logit Gram."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose, decompose_all, error
from tests.helpers import Toy, toy_batches


@pytest.fixture(scope="module")
def toy():
    model, batches = Toy(), toy_batches()
    return model, collect(
        model, batches, needs={"gram", "logit_gram", "grad"}, task_loss=lambda m, b: loss(m(b[0]), b[1])
    )


loss = nn.functional.cross_entropy


def test_the_ruler_is_the_squared_error_of_the_output_as_the_logits_feel_it(toy):
    model, stats = toy
    W, found = model.query.weight.detach().double(), stats["query"]
    C = found.logit_gram
    for ridge in (1e-6, 1e-2):
        damped = C + ridge * C.trace() / len(C) * torch.eye(len(C))
        whole = decompose(W, found, "gram_logit", ridge=ridge)
        for rank in (1, 4, 8):
            D = W - whole.truncate(rank).dense()
            value = float((damped @ D @ found.gram @ D.T).trace())
            assert value == pytest.approx(whole.tail_error(rank), rel=1e-7)
            assert error(W, W - D, found, "gram_logit", ridge=ridge) == pytest.approx(value, rel=1e-7)


def test_an_identity_gives_svd_llm_and_scale_does_not_matter(toy):
    model, stats = toy
    W, found = model.key.weight, stats["key"]
    plain = replace(found, logit_gram=torch.eye(len(W), dtype=torch.float64))
    louder = replace(found, logit_gram=1e5 * found.logit_gram)
    truth = decompose(W, found, "gram").truncate(5).dense()
    torch.testing.assert_close(decompose(W, plain, "gram_logit").truncate(5).dense(), truth, rtol=0, atol=1e-10)
    ours = decompose(W, found, "gram_logit").truncate(5).dense()
    assert float((ours - truth).norm()) > 1e-2 * float(truth.norm())
    torch.testing.assert_close(decompose(W, louder, "gram_logit").truncate(5).dense(), ours, rtol=0, atol=1e-9)


def test_first_order_changes_of_all_components_sum_to_that_of_the_weight(toy):
    model, stats = toy
    for name, found in decompose_all(model, stats, "gram_logit").items():
        G, W = stats[name].grad, model.get_submodule(name).weight.detach().double()
        changes = -(found.left * (G @ found.right.T)).sum(0)
        assert float(changes.sum()) == pytest.approx(-float((G * W).sum()), rel=1e-8, abs=1e-12)
        L, C = stats[name].gram_root(), stats[name].logit_gram
        Lo = torch.linalg.cholesky(C + 1e-3 * C.trace() / len(C) * torch.eye(len(C)))
        U, s, Vt = torch.linalg.svd(Lo.T @ W @ L, full_matrices=False)
        H = torch.linalg.solve(Lo, G) @ torch.linalg.inv(L).T  # L_o⁻¹ G L⁻ᵀ, the gradient in whitened coordinates
        torch.testing.assert_close(changes[:3], -(s * ((U.T @ H) * Vt).sum(1))[:3], rtol=1e-6, atol=1e-9)


def test_the_method_runs_and_needs_the_output_side(toy):
    model, stats = toy
    cut = copy.deepcopy(model)
    assert 0.4 <= compress(cut, "io_svd", 0.4, stats).achieved < 0.6
    assert torch.isfinite(cut(torch.ones(2, 12))).all()
    bare = {name: replace(found, logit_gram=None) for name, found in stats.items()}
    with pytest.raises(ValueError, match="method 'io_svd' for layer 'query' needs the statistic 'logit_gram'"):
        compress(copy.deepcopy(model), "io_svd", 0.4, bare)
