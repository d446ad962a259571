"""The closed-form update: least squares by another route, the inputs that really arrive, and what stays as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prehab_lib.budget import rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.layers import replace_module
from prehab_lib.methods import RECOVERIES, Method
from prehab_lib.rivals.svd_llm_update import closed_form, refit
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose, decompose_all
from tests.helpers import Toy, layer, skewed, toy_batches
from tests.stack import Stack, bits, changed, refuses, same, stack_batches

every_recovery = pytest.mark.parametrize("recovery", RECOVERIES)


def loss(X, W, U, V) -> float:
    return float((X @ (W - U @ V).T).square().sum())


def numpys(X, W, V) -> np.ndarray:
    """U' (m, r) by another route: least squares of X Wᵀ on X Vᵀ."""
    return np.linalg.lstsq((X @ V.T).numpy(), (X @ W.T).numpy(), rcond=None)[0].T


# One layer


def factors(rows: int = 200, rank: int = 5):
    """W (16, 12), U and V of another ruler than the Gram's, the Gram, and its inputs (rows, 12)."""
    W, X = layer(16, 12, 300)[0], skewed(rows, 12, seed=5)
    U, s, Vt = torch.linalg.svd(W, full_matrices=False)
    return W, U[:, :rank] * s[:rank], Vt[:rank], X.T @ X / rows, X


def test_refit_is_least_squares_and_leaves_the_best_factors_alone():
    W, U, V, gram, X = factors()
    np.testing.assert_allclose(refit(W, U, V, gram).numpy(), numpys(X, W, V), rtol=1e-8)
    assert loss(X, W, refit(W, U, V, gram), V) < 0.9 * loss(X, W, U, V)
    W, stats, _ = layer(16, 12, 300)
    best = decompose(W, stats, "gram").truncate(5).balanced()
    torch.testing.assert_close(refit(W, best.U, best.V, stats.gram), best.U, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("outlier", [1, 3000])
def test_fewer_tokens_than_ranks_move_only_what_they_show(rows, outlier):
    """Round-off is not taken for data, with and without a channel far above the rest."""
    W, U, V, _, X = factors(rows)
    X[:, 0] *= outlier
    new = refit(W, U, V, X.T @ X / rows)
    assert loss(X, W, new, V) <= 1e-10 * loss(X, W, U, V)  # as many unknowns as there are tokens: they are met
    assert int(torch.linalg.matrix_rank(new - U)) == rows
    assert (new - U).norm() < 10 * U.norm()


def test_dead_directions_keep_their_u():
    W, U, V, gram, _ = factors()
    V = torch.cat([V[:3], torch.zeros(1, 12), V[4:]])
    gram[2] = gram[:, 2] = 0
    new = refit(W, U, V, gram)
    assert torch.equal(new[:, 3], U[:, 3]) and torch.isfinite(new).all()
    assert torch.equal(refit(W, U, V, torch.zeros(12, 12, dtype=torch.float64)), U)


def test_neither_the_scale_of_the_gram_nor_the_split_of_the_product_changes_anything():
    W, U, V, gram, _ = factors()
    expected = refit(W, U, V, gram)
    for by in (1e-8, 1e8):
        torch.testing.assert_close(refit(W, U, V, by * gram), expected, rtol=1e-9, atol=1e-9)
    split = torch.logspace(-5, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(refit(W, U * split, V / split[:, None], gram) / split, expected)


# A model


def compressed(weighting="identity", removed=0.5, layers=None, dense=None, batches=None):
    """A compressed model, its decompositions, its batches, and the dense model, in float64."""
    dense = (dense or Stack()).double()
    batches = [(x.double(), y) for x, y in batches or stack_batches()]
    names = layers or [name for name, module in dense.named_modules() if isinstance(module, nn.Linear)]
    stats = collect(dense, batches, names)
    decompositions = decompose_all(dense, stats, weighting, names)
    model = copy.deepcopy(dense)
    compress(model, Method(weighting), removed, stats, decompositions=decompositions)
    return model, decompositions, batches, dense


def recover(recovery, model, decompositions, batches):
    given = dict(stats=None, weighting="identity", task_loss=classification_loss, batches=batches)
    RECOVERIES[recovery](model, decompositions=decompositions, **given)


def inputs_of(model, module, batches):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2)))
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    handle.remove()
    return torch.cat(seen).double()


@pytest.mark.filterwarnings("error")
def test_only_u_changes_no_hook_stays_and_its_own_whitening_data_teach_it_nothing():
    model, decompositions, batches, _ = compressed("gram", layers=["blocks.0.up"])
    before = bits(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    torch.testing.assert_close(model.blocks[0].up.U.weight, before["blocks.0.up.U.weight"], rtol=0, atol=1e-10)
    model, decompositions, batches, _ = compressed(removed=0.2)
    model.train()
    model.head.eval()
    before = bits(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    assert changed(model, before) == {name for name in before if name.endswith("U.weight")}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training and not model.head.training


class Deep(nn.Module):
    """Two blocks of query, key, value, out, up and down, as a decoder's."""

    def __init__(self, n=16):
        super().__init__()
        torch.manual_seed(0)
        shapes = dict(query=(n, n), key=(n, n), value=(n, n), out=(n, n), up=(n, 2 * n), down=(2 * n, n))
        make = lambda: nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()})  # noqa: E731
        self.layers = nn.ModuleList(make() for _ in range(2))

    def forward(self, x):
        for block in self.layers:
            scores = torch.softmax(block["query"](x) @ block["key"](x).transpose(-1, -2) / 4, -1)
            x = x + block["out"](scores @ block["value"](x))
            x = x + block["down"](torch.tanh(block["up"](x)))
        return x


@pytest.mark.parametrize("removed", [0.4, 0.6])
def test_it_is_the_release_s_sequential_update(removed):
    """Its loop by hand: of a block, all layers at once with the block dense; then the inputs pass it updated."""
    dense, X = Deep().double(), torch.randn(8, 40, 16, dtype=torch.float64, generator=torch.manual_seed(1))
    batches = [{"x": part} for part in X.split(2)]
    stats = collect(dense, batches)
    model = copy.deepcopy(dense)
    compress(model, "svd_llm_update", removed, stats, batches=batches)
    by_hand, inputs = copy.deepcopy(dense), X
    for number, block in enumerate(by_hand.layers):
        seen = {}
        for name, module in block.items():
            module.register_forward_hook(lambda _, args, out, name=name, seen=seen: seen.update({name: (args[0], out)}))
        one = Deep().double()
        one.layers = nn.ModuleList([block])
        one(inputs)
        for name, module in block.items():
            x, y = (part.detach().flatten(0, 1) for part in seen[name])
            L = torch.linalg.cholesky(stats[f"layers.{number}.{name}"].gram)
            _, s, Vt = torch.linalg.svd(module.weight.detach() @ L, full_matrices=False)
            rank = rank_for(module.weight.shape, removed)
            V = s[:rank, None] * Vt[:rank] @ torch.linalg.inv(L)
            module.weight.data = torch.linalg.lstsq(x @ V.T, y).solution.T @ V
        inputs = one(inputs).detach()
        for name, module in block.items():
            ours = model.get_submodule(f"layers.{number}.{name}").weight.detach()
            torch.testing.assert_close(ours, module.weight.data, rtol=1e-7, atol=1e-9, msg=f"{number}.{name}")


def test_outside_numbered_blocks_each_layer_is_one():
    names, toy = ["out", "key", "query"], Toy(n=24, m=32, classes=20)
    model, cuts, batches, dense = compressed(dense=toy, batches=toy_batches(n=24, classes=20, count=12), layers=names)
    passes = []
    model.out.U.register_forward_hook(lambda module, *_: passes.append(module.training))
    closed_form(model.train(), decompositions=cuts, batches=batches)
    assert passes == [False] * (2 * len(batches))  # query's, key's; then out is dense
    for name in names:  # each U is the minimiser for inputs that have passed the other layers refitted
        layer, mixed = model.get_submodule(name), copy.deepcopy(model)
        replace_module(mixed, name, copy.deepcopy(dense.get_submodule(name)))
        X, W = inputs_of(mixed, mixed.get_submodule(name), batches), dense.get_submodule(name).weight.detach()
        expected, options = numpys(X, W, layer.V.weight.detach()), dict(rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(layer.U.weight.detach().numpy(), expected, **options)


def test_a_float32_model_with_few_tokens_gets_the_update_of_a_float64_one():
    model, decompositions, batches, _ = compressed()
    few = [(x[:1], y[:1]) for x, y in batches]  # 4 tokens for rank 7
    rough, old = copy.deepcopy(model).float(), model.blocks[0].up.U.weight.detach().clone()
    with pytest.warns(UserWarning, match="fewer than 10 tokens per rank"):
        closed_form(model, decompositions=decompositions, batches=few)
    closed_form(rough, decompositions=decompositions, batches=[(x.float(), y) for x, y in few])
    moved = model.blocks[0].up.U.weight.detach() - old
    assert int(torch.linalg.matrix_rank(moved)) == 4
    assert (rough.blocks[0].up.U.weight.detach() - old - moved).norm() < 1e-4 * moved.norm()


# Both recoveries, and what can go wrong


@every_recovery
def test_dense_layers_and_layers_without_a_decomposition_stay(recovery):
    model, decompositions, batches, dense = compressed()
    before = bits(model)
    recover(recovery, model, {"head": decompositions["head"]}, batches)
    assert "head.U.weight" in changed(model, before) and changed(model, before) <= {"head.U.weight", "head.V.weight"}
    before = bits(dense)
    recover(recovery, dense, decompositions, batches)
    assert not changed(dense, before)


@every_recovery
def test_compress_hands_it_what_it_needs(recovery):
    plain, cuts, batches, dense = compressed()
    before = bits(plain)
    data = dict(decompositions=cuts, task_loss=classification_loss, batches=batches)
    compress(dense, Method("identity", recovery=recovery), 0.5, **data)
    recover(recovery, plain, cuts, batches)
    assert same(dense, plain) and "head.U.weight" in changed(plain, before)


@every_recovery
def test_missing_batches_and_a_layer_nobody_calls_are_named_and_nothing_changes(recovery):
    model, decompositions, batches, _ = compressed()
    before = bits(model)
    refuses(
        lambda batches: recover(recovery, model, decompositions, batches),
        ({"batches": None}, f"recovery '{recovery}' needs batches"),
        ({"batches": []}, "no batches"),
        ({"batches": iter([1])}, f"recovery '{recovery}' goes over batches many times.*not a generator"),
    )
    model.forward = lambda x: model.head(x)
    with pytest.raises(ValueError, match="no (calibration input|gradient) reache[sd] layer 'blocks.0.up'"):
        recover(recovery, model, decompositions, batches)
    assert not changed(model, before)


def test_a_failure_midway_gives_every_u_back():
    model, decompositions, batches, _ = compressed()
    model.blocks[1].down.V.register_forward_hook(lambda *_: torch.full((100, 7), float("nan"), dtype=torch.float64))
    before = bits(model)
    with pytest.raises(ValueError, match="NaN or infinite activations reach layer 'blocks.2.up'"):
        closed_form(model, decompositions=decompositions, batches=batches)
    assert not changed(model, before)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == 1


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "silent"])
def test_channels_that_are_silent_in_calibration_keep_what_svd_llm_gave_them(constant):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 48, bias=False))
    x = torch.ones(800, 64) if constant else torch.randn(800, 64) * (torch.arange(64) < 8)
    batches = [(x, torch.zeros(800, dtype=torch.long))]
    models = [copy.deepcopy(dense), copy.deepcopy(dense)]
    for model, method in zip(models, ("svd_llm", "svd_llm_update"), strict=True):
        compress(model, method, 0.4, collect(dense, batches), batches=batches)
    plain, updated = (model[0].U.weight for model in models)
    torch.testing.assert_close(updated, plain, rtol=0, atol=1e-4)
