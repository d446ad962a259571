import copy
import math

import pytest
import torch
from torch import nn

from prehab_lib.budget import break_even_rank, rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.rivals import dobi
from prehab_lib.rivals.gates import Gates
from prehab_lib.rivals.subspaces import SUBSPACES, Incremental, IncrementalCentred, Stacked
from prehab_lib.rivals.trial import loss_at
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.tasks.perplexity import language_loss
from prehab_lib.tasks.small_llama import small_llama
from prehab_lib.weightings import decompose_all, error
from tests.helpers import check_slopes, killed_after, skewed
from tests.stack import bits, stack_batches, trained, untouched

every_subspace = pytest.mark.parametrize("subspace", SUBSPACES)
SHAPES = [(16, 16), (8, 32), (40, 24), (1024, 4096), (4096, 1024)]


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return trained()


@pytest.fixture(scope="module")
def batches():
    return stack_batches()


def linear_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


# Units


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [7, 64, 2048])
def test_positions_and_weight_ranks_are_one_scale(shape, tokens):
    for rank in (0, 1, min(shape) // 3, min(shape)):
        position = dobi.activation_position(rank, shape, tokens)
        assert 0 <= position <= tokens
        assert dobi.weight_rank(position, shape, tokens) == pytest.approx(rank)
    assert dobi.weight_rank(tokens, shape, tokens) == min(shape)


def test_grouped_query_attention_divides_by_more_than_zero():
    """Keys of (1024, 4096) at 2048 tokens: half of the tokens is half of the rank, not a division by 1024 // 2048."""
    assert dobi.weight_rank(1024, (1024, 4096), 2048) == 512
    assert dobi.activation_position(512, (1024, 4096), 2048) == 1024


@pytest.mark.parametrize("shape", SHAPES)
def test_remap_is_a_bijection(shape):
    most = min(shape)
    shares = [dobi.remapped_share(rank, shape) for rank in range(most + 1)]
    assert shares[0] == 0 and shares[-1] == 1 and len(set(shares)) == most + 1 and shares == sorted(shares)
    assert [dobi.remapped_rank(share, shape) for share in shares] == list(range(most + 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kept", [0.1, 0.3, 0.57, 0.8, 0.95])
def test_a_remapped_rank_is_the_largest_that_fits(shape, kept):
    m, n = shape
    rank = dobi.remapped_rank(kept, shape)
    assert rank * max(m, n) <= kept * m * n < (rank + 1) * max(m, n)
    assert rank >= rank_for(shape, 1 - kept) or rank == 0
    assert dobi.remapped_rank(0.9, shape) > break_even_rank(shape)  # out of reach for plain factors


@pytest.mark.parametrize("kept", [-0.1, 1.1, math.nan])
def test_bad_shares_are_refused(kept):
    with pytest.raises(ValueError, match="kept = "):
        dobi.remapped_rank(kept, (4, 4))
    with pytest.raises(ValueError, match="rank = 5.*allows 0 to 4"):
        dobi.remapped_share(5, (4, 6))


# Truncated activations


def test_a_steep_gate_truncates_the_activations_batch_by_batch(model, batches):
    """Of the layer alone: its outputs without the bias have the rank of the gate, and are the nearest such."""
    x, name = batches[0][0], "blocks.0.up"
    layer = model.get_submodule(name)
    gates = Gates({name: (40, 24)}, 0.5, "break_even", {name: 5})
    gates.beta = 1e4
    with torch.no_grad():
        A = layer(x) - layer.bias
        with dobi.truncated(model, gates):
            F = layer(x) - layer.bias
        U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    torch.testing.assert_close(F, U[:, :5] @ torch.diag(s[:5]) @ Vh[:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tokens", "at"), [(100, 6), (12, 3)])
def test_the_gate_stands_at_its_share_of_what_the_activations_can_have(tokens, at):
    """A layer (40, 24) at a quarter of its rank: the 6th of 24 values, and the 3rd where 12 tokens have but 12."""
    layer = nn.Sequential(nn.Linear(24, 40, bias=False))
    gates = Gates({"0": (40, 24)}, 0.5, "break_even", {"0": 6})
    gates.beta = 1e4
    with torch.no_grad(), dobi.truncated(layer, gates):
        F = layer(torch.randn(2, tokens // 2, 24, generator=torch.Generator().manual_seed(0)))
    assert F.shape == (2, tokens // 2, 40)
    assert int(torch.linalg.matrix_rank(F.reshape(tokens, 40), rtol=1e-4)) == at


def test_open_gates_change_nothing(model, batches):
    names = linear_names(model)
    gates = Gates({n: tuple(model.get_submodule(n).weight.shape) for n in names}, 0.5, "break_even", None)
    gates.beta = 1e4
    with torch.no_grad():
        gates.shares.fill_(2.0)
        dense = model(batches[0][0])
        with dobi.truncated(model, gates):
            torch.testing.assert_close(model(batches[0][0]), dense, rtol=1e-4, atol=1e-4)


def test_the_slope_of_the_loss_is_its_finite_difference(batches):
    """Through the gates of all layers behind: the gradient of every truncation has to be right."""
    model = trained(20).double()
    batch = (batches[0][0].double(), batches[0][1])
    names = [name for name in linear_names(model) if name != "gate"]
    gates = Gates({n: tuple(model.get_submodule(n).weight.shape) for n in names}, 0.5, "break_even", None)
    with dobi.truncated(model, gates):
        (slope,) = torch.autograd.grad(classification_loss(model, batch), gates.shares)
        check_slopes(slope, gates, lambda: classification_loss(model, batch), 1e-6, rel=1e-4, abs=1e-7)


# Learning


def test_learned_positions_beat_uniform_ranks_and_keep_the_budget(model, batches):
    names = [name for name in linear_names(model) if name != "gate"]
    found = dobi.learn_positions(model, 0.6, classification_loss, batches, layers=names, steps=25)
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in names}
    stored = sum(math.prod(shapes[n]) if r is None else r * sum(shapes[n]) for n, r in found.ranks.items())
    assert stored <= 0.4 * sum(math.prod(shape) for shape in shapes.values())
    assert found.rows[0]["kept"] == pytest.approx(0.4)
    cuts = decompose_all(model, collect(model, batches, names), "gram")
    uniform = {name: rank_for(shape, 0.6) for name, shape in shapes.items()}
    at = [loss_at(model, cuts, ranks, classification_loss, batches) for ranks in (found.ranks, uniform)]
    assert at[0] < at[1]


def test_a_llama_with_grouped_query_attention(batches):
    llama = small_llama(40, depth=1, width=16, heads=4, kv_heads=1).eval()
    before = bits(llama)
    ids = [torch.randint(0, 40, (2, 12), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    rows = [{"input_ids": x} for x in ids]
    found = [dobi.learn_positions(llama, 0.4, language_loss, rows, steps=4) for _ in range(2)]
    assert found[0] == found[1] and len(found[0].ranks) == 7
    assert untouched(llama, before)
    key = "model.layers.0.self_attn.k_proj"
    assert llama.get_submodule(key).weight.shape == (4, 16) and found[0].ranks[key] <= 3
    padded = [{"input_ids": ids[0], "attention_mask": torch.ones(2, 12, dtype=torch.long).tril()}]
    with pytest.raises(ValueError, match="a batch has padding"):
        dobi.learn_positions(llama, 0.4, language_loss, padded, steps=1)
    with pytest.raises(ValueError, match="a batch has padding"):
        dobi.project(llama, found[0].ranks, padded)
    assert untouched(llama, before)


@pytest.mark.parametrize("where", ["learning", "projecting"])
def test_the_model_is_as_it_was_where_something_fails(where, model, batches):
    model, before = copy.deepcopy(model), bits(model)
    loss = killed_after(2, classification_loss) if where == "learning" else classification_loss
    options = {"subspace": "incremental", "steps": 3}
    data = batches if where == "learning" else [(x[:3], y[:3]) for x, y in batches]
    with pytest.raises(
        KeyboardInterrupt if where == "learning" else ValueError, match=None if where == "learning" else "layer 'b"
    ):
        dobi.compress(model, 0.4, loss, data, **options)
    assert untouched(model, before)


# The weight update


def test_the_update_is_the_whitened_truncation(model, batches):
    """Ŵ = U_k U_kᵀ W of the stacked outputs: SVD-LLM's map at the same ranks (digest, fact 2)."""
    names = linear_names(model)
    ranks = {name: 1 + place for place, name in enumerate(names) if name != "gate"}
    cuts = decompose_all(model, collect(model, batches, names), "gram")
    found = dobi.project(model, ranks | {"gate": None}, batches)
    assert found.keys() == ranks.keys()
    for name, rank in ranks.items():
        ours, theirs = found[name].dense(), cuts[name].truncate(rank).dense()
        assert found[name].rank == rank
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6, name


@every_subspace
def test_what_is_kept_is_a_projection_of_the_outputs(subspace, model, batches):
    ranks = {"blocks.0.up": 7, "blocks.1.down": 3}
    for name, factors in dobi.project(model, ranks, batches, subspace=subspace).items():
        V, W = factors.U, model.get_submodule(name).weight.double()
        torch.testing.assert_close(V.T @ V, torch.eye(ranks[name], dtype=torch.float64))
        torch.testing.assert_close(factors.V, V.T @ W)
        assert int(torch.linalg.matrix_rank(factors.dense())) == ranks[name]


@pytest.mark.parametrize("rank", [2, 6, 12])
def test_no_subspace_beats_the_stacked_one(rank, model, batches):
    name = "blocks.2.up"
    stats, W = collect(model, batches, [name])[name], model.get_submodule(name).weight
    loss = {
        subspace: error(W, dobi.project(model, {name: rank}, batches, subspace=subspace)[name].dense(), stats, "gram")
        for subspace in SUBSPACES
    }
    best = decompose_all(model, {name: stats}, "gram")[name].tail_error(rank)
    assert loss["stacked"] == pytest.approx(best, rel=1e-6)
    assert min(loss["incremental"], loss["incremental_centred"]) > 1.0001 * best


def shared_subspace(k: int, m: int) -> tuple[torch.Tensor, list]:
    """Batches of activations that all live in the same k directions (m, k)."""
    Q = torch.linalg.qr(skewed(m, m, seed=5, spread=0.0)).Q[:, :k]
    return Q, [skewed(20, k, seed=i, spread=1.0) @ Q.T for i in range(4)]


@pytest.mark.parametrize("way", [Stacked, Incremental])
def test_a_subspace_that_all_batches_share_is_found(way):
    Q, activations = shared_subspace(3, 10)
    found = way(3)
    for A in activations:
        found.add(A)
    V = found.basis()
    torch.testing.assert_close(V @ V.T, Q @ Q.T, rtol=0, atol=1e-9)


def test_centring_loses_a_direction_that_all_batches_share():
    """Of one batch's k rows, the mean taken off leaves k − 1: the span is not found even where it is plain to see."""
    Q, activations = shared_subspace(3, 10)
    found = IncrementalCentred(3)
    found.add(activations[0])
    V = found.basis()
    assert float((V @ V.T - Q @ Q.T).norm()) > 0.5


def test_the_incremental_subspace_gives_every_batch_one_vote():
    """The top of the sum of their projectors: two votes against one, though the one is a thousand times louder."""
    A, B = skewed(30, 10, seed=1, spread=1.0), 1e3 * skewed(30, 10, seed=2, spread=1.0).flip(1)
    found, projectors = Incremental(3), 0
    for activations in (A, A, B):
        found.add(activations)
        V = torch.linalg.svd(activations).Vh[:3].T
        projectors = projectors + V @ V.T
    V, expected = found.basis(), torch.linalg.eigh(projectors).eigenvectors[:, -3:]
    torch.testing.assert_close(V @ V.T, expected @ expected.T, rtol=0, atol=1e-9)


# The whole way


@every_subspace
def test_the_whole_way_in_place(subspace, model, batches):
    names = [name for name in linear_names(model) if name != "gate"]
    cut = copy.deepcopy(model)
    report, found = dobi.compress(cut, 0.5, classification_loss, batches, layers=names, subspace=subspace, steps=4)
    assert report.ranks == found.ranks and report.achieved >= 0.5
    assert report.achieved < 0.5 + 64 / 6048  # less than one rank of the largest layer
    for name, rank in found.ranks.items():
        module, dense = cut.get_submodule(name), model.get_submodule(name)
        assert isinstance(module, LowRankLinear) == (rank is not None)
        assert rank is None or (module.rank == rank and torch.equal(module.bias, dense.bias))
    assert torch.isfinite(cut(batches[0][0])).all()


def test_at_its_ranks_it_is_svd_llm(model, batches):
    """The same model as surgery makes at these ranks under the Gram."""
    names = [name for name in linear_names(model) if name != "gate"]
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    _, found = dobi.compress(ours, 0.5, classification_loss, batches, layers=names, steps=4)
    cuts = decompose_all(model, collect(model, batches, names), "gram")
    compress(theirs, "svd_llm", 0.5, decompositions=cuts)
    x = batches[0][0]
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name, rank in found.ranks.items():
            if rank:
                dense.get_submodule(name).weight.copy_(cuts[name].truncate(rank).dense())
        torch.testing.assert_close(ours(x), dense(x), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(ours(x), theirs(x), rtol=1e-2, atol=1e-2)  # ranks are what it changes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, b: dobi.project(m, {"head": 3}, b, subspace="pca"),
            "subspace = 'pca' is not known: choose one of st",
        ),
        (lambda m, b: dobi.project(m, {"head": 3}, []), "no batch reached layer 'head'"),
        (
            lambda m, b: dobi.project(m, {"head": 12}, [(b[0][0][:5], b[0][1][:5])], subspace="incremental"),
            "'head'.*larger batches",
        ),
        (lambda m, b: dobi.learn_positions(m, 0.5, None, b), "learn_positions needs task_loss"),
        (lambda m, b: dobi.learn_positions(m, 0.5, classification_loss, iter(b)), "batches many times"),
        (lambda m, b: dobi.learn_positions(m, 0.5, classification_loss, b, steps=0), "steps = 0"),
        (lambda m, b: dobi.learn_positions(m, 1.5, classification_loss, b), "removed = 1.5"),
    ],
)
def test_what_is_wrong_is_named(call, message, model, batches):
    with pytest.raises(ValueError, match=message):
        call(model, batches)
