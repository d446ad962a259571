"""IO-SVD's ruler, made of the input Gram and the logit Gram."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from prehab_lib.methods import Method
from prehab_lib.save.rewrite import split_qkv
from prehab_lib.statistics.logit_gram import input_only
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose, decompose_all, error
from tests.families import vit
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
    before = {name: found.logit_gram for name, found in stats.items()}
    plain = input_only(stats, suffixes=("query", "key"))
    louder = {n: torch.mul(f.logit_gram, 1e5) for n, f in stats.items()}
    W = model.key.weight
    truth = decompose(W, stats["key"], "gram").truncate(5).dense()
    torch.testing.assert_close(decompose(W, plain["key"], "gram_logit").truncate(5).dense(), truth, rtol=0, atol=1e-10)
    ours = decompose(W, stats["key"], "gram_logit").truncate(5).dense()
    assert float((ours - truth).norm()) > 1e-2 * float(truth.norm())
    stats["key"].logit_gram = louder["key"]
    torch.testing.assert_close(decompose(W, stats["key"], "gram_logit").truncate(5).dense(), ours, rtol=0, atol=1e-9)
    stats["key"].logit_gram = before["key"]
    assert all(stats[name].logit_gram is C for name, C in before.items())
    assert plain["out"] is stats["out"] and plain["query"].gram is plain["key"].gram is stats["key"].gram
    assert plain["query"].gram_root() is stats["key"].gram_root()


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


def test_queries_and_keys_go_input_only_and_a_fused_matrix_cannot():
    model, images = vit(), torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused = collect(model, [{"x": images}], needs={"gram", "logit_gram"})
        with pytest.raises(ValueError, match="'blocks.0.attn.qkv' is fused and not separable, call rewrite.split_qkv"):
            input_only(fused)
        split_qkv(model)
        stats = collect(model, [{"x": images}], needs={"gram", "logit_gram"})
    found = input_only(stats)
    eye = [name for name, s in found.items() if torch.equal(s.logit_gram, torch.eye(len(s.logit_gram)).double())]
    assert eye == [f"blocks.{i}.attn.qkv.{part}" for i in range(2) for part in "qk"]
    ranks = compress(model, Method("gram_logit"), 0.4, found).ranks
    assert set(ranks) == set(stats)
    with pytest.raises(ValueError, match="no layer's name ends in q_proj.*none is there"):
        input_only({"out": stats["head"]})
    for name in ("layers.0.self_attn.q_proj", "encoder.layer.0.attention.self.key", "k", "seq.q"):
        assert (input_only({name: stats["head"], "x.query": stats["head"]})[name] is not stats["head"]) == (
            name[-4:] in ("proj", ".key")
        )


def test_the_method_runs_with_and_without_the_output_side_of_some_layers(toy):
    model, stats = toy
    reports = []
    for found in (stats, input_only(stats, suffixes=("query", "key"))):
        cut = copy.deepcopy(model)
        reports.append(compress(cut, "io_svd", 0.4, found))
        assert 0.4 <= reports[-1].achieved < 0.6 and torch.isfinite(cut(torch.ones(2, 12))).all()
    bare = {name: replace(found, logit_gram=None) for name, found in stats.items()}
    with pytest.raises(ValueError, match="method 'io_svd' for layer 'query' needs the statistic 'logit_gram'"):
        compress(copy.deepcopy(model), "io_svd", 0.4, bare)
