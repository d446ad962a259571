import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from prehab_lib.evaluate import classification_loss
from prehab_lib.factors import LowRankLinear
from prehab_lib.methods import RECOVERIES, Method
from prehab_lib.rivals.recovery import closed_form
from prehab_lib.stats import collect
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import Toy, toy_batches
from tests.rivals.test_refit import loss, numpys
from tests.stack import Stack, bits, stack_batches

every_recovery = pytest.mark.parametrize("recovery", RECOVERIES)


def recover(recovery, model, decompositions, batches):
    given = dict(stats=None, weighting="identity", task_loss=classification_loss, batches=batches)
    RECOVERIES[recovery](model, decompositions=decompositions, **given)


def compressed(weighting="gram", removed=0.5, layers=None, model=None, batches=None):
    """A compressed model, its decompositions, its batches, and the dense model, in float64."""
    dense = (model or Stack()).double()
    batches = batches or [(x.double(), y) for x, y in stack_batches()]
    names = layers or [name for name, module in dense.named_modules() if isinstance(module, nn.Linear)]
    stats = collect(dense, batches, names)
    decompositions = decompose_all(dense, stats, weighting, names)
    model = copy.deepcopy(dense)
    compress(model, Method(weighting), removed, stats, decompositions=decompositions)
    return model, decompositions, batches, dense


def inputs_of(model, module, batches):
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2)))
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    handle.remove()
    return torch.cat(seen).double()


def test_the_identity_on_its_own_whitening_data():
    model, decompositions, batches, _ = compressed(layers=["blocks.0.up"])
    before = bits(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    torch.testing.assert_close(model.blocks[0].up.U.weight, before["blocks.0.up.U.weight"], rtol=0, atol=1e-10)


def test_only_u_changes_and_no_hook_stays():
    model, decompositions, batches, _ = compressed("identity")
    model.train()
    model.head.eval()
    before = bits(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.endswith("U.weight")}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.training and not model.head.training


@pytest.mark.parametrize("weighting", ["identity", "gram"])
def test_every_layer_is_the_least_squares_fit_to_what_reaches_it(weighting):
    """In the refitted model X̃ has passed refitted layers only; there each U must be the minimiser, and better than before."""
    model, decompositions, batches, dense = compressed(weighting)
    before = copy.deepcopy(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            X = inputs_of(model, module.V, batches)
            W, V = dense.get_submodule(name).weight.detach(), module.V.weight.detach()
            np.testing.assert_allclose(module.U.weight.detach().numpy(), numpys(X, W, V), rtol=1e-6, atol=1e-9)
            old = before.get_submodule(name).U.weight.detach()
            assert loss(X, W, module.U.weight.detach(), V) <= loss(X, W, old, V) * (1 + 1e-10)
    assert not torch.equal(before.head.U.weight, model.head.U.weight)


def test_layers_that_read_one_tensor_are_refitted_to_the_same_inputs_in_one_pass():
    batches = [(x.double(), y) for x, y in toy_batches(n=24, classes=20, count=12)]
    model, decompositions, batches, dense = compressed(
        "identity", model=Toy(n=24, m=32, classes=20), batches=batches, layers=["out", "key", "query"]
    )
    passes, modes = {"query": 0, "out": 0}, set()

    def count(name, module):
        passes[name] += 1
        modes.add(module.training)

    for name in passes:
        model.get_submodule(name).U.register_forward_hook(lambda module, *_, name=name: count(name, module))
    closed_form(model.train(), decompositions=decompositions, batches=batches)
    assert modes == {False}
    # One look at the order; then query and key together, stopped at once, and out, stopped before its second factor.
    assert passes == {
        "query": 2 * len(batches),
        "out": len(batches),
    }  # one pass for the order, one for the Gram of query
    for name in ("query", "key", "out"):
        module, X = model.get_submodule(name), inputs_of(model, model.get_submodule(name).V, batches)
        W, V = dense.get_submodule(name).weight.detach(), module.V.weight.detach()
        np.testing.assert_allclose(module.U.weight.detach().numpy(), numpys(X, W, V), rtol=1e-6, atol=1e-9)


def test_a_layer_called_twice_is_refitted_to_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.last = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            return self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))

    batches = [(x.double(), y) for x, y in toy_batches()]
    model, decompositions, batches, dense = compressed("identity", model=Twice(), batches=batches)
    old = copy.deepcopy(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    X = inputs_of(old, old.shared.V, batches)  # both calls, before the update
    V, W = model.shared.V.weight.detach(), dense.shared.weight.detach()
    np.testing.assert_allclose(model.shared.U.weight.detach().numpy(), numpys(X, W, V), rtol=1e-6)


def test_an_input_changed_in_place_is_not_the_same_input():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            x = x.clone()
            return self.a(x) + self.b(x.sub_(1.0).relu_())

    batches = [(x.double(), y) for x, y in toy_batches()]
    model, decompositions, batches, dense = compressed("identity", model=InPlace(), batches=batches)
    closed_form(model, decompositions=decompositions, batches=batches)
    X, W, V = torch.cat([x for x, _ in batches]).sub(1).relu(), dense.b.weight.detach(), model.b.V.weight.detach()
    np.testing.assert_allclose(model.b.U.weight.detach().numpy(), numpys(X, W, V), rtol=1e-6)


def test_padding_does_not_count():
    model, x = Toy(), torch.randn(60, 6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(60, 6, dtype=torch.long)
    mask[:, 4:] = 0
    clean = [{"x": x.clone(), "attention_mask": mask}]
    model, decompositions, _, _ = compressed("identity", model=model, batches=clean, layers=["query", "key"])
    other = copy.deepcopy(model)
    closed_form(model, decompositions=decompositions, batches=clean)
    x[:, 4:] = 1e4
    closed_form(other, decompositions=decompositions, batches=[{"x": x, "attention_mask": mask}])
    assert torch.equal(model.query.U.weight, other.query.U.weight)


@pytest.mark.filterwarnings("ignore:.*tokens per rank")
def test_a_float32_model_with_few_tokens_gets_the_update_of_a_float64_one():
    model, decompositions, batches, _ = compressed("identity")
    few = [(x[:1], y[:1]) for x, y in batches]  # 4 tokens for rank 7
    rough, old = copy.deepcopy(model).float(), model.blocks[0].up.U.weight.detach().clone()
    closed_form(model, decompositions=decompositions, batches=few)
    closed_form(rough, decompositions=decompositions, batches=[(x.float(), y) for x, y in few])
    moved = model.blocks[0].up.U.weight.detach() - old
    assert int(torch.linalg.matrix_rank(moved)) == 4
    assert (rough.blocks[0].up.U.weight.detach() - old - moved).norm() < 1e-4 * moved.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model, decompositions, batches, dense = compressed("identity")
    model, batches = model.to(dtype), [(x.to(dtype), y) for x, y in batches]
    old = copy.deepcopy(model)
    closed_form(model, decompositions=decompositions, batches=batches)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    for name in ("blocks.0.up", "blocks.2.down", "head"):
        module, X = model.get_submodule(name), inputs_of(model, model.get_submodule(name).V, batches)
        W, V = dense.get_submodule(name).weight.detach(), module.V.weight.detach().double()
        was = loss(X, W, old.get_submodule(name).U.weight.detach().double(), V)
        assert loss(X, W, module.U.weight.detach().double(), V) < was


@every_recovery
def test_dense_layers_and_layers_without_a_decomposition_stay(recovery):
    model, decompositions, batches, dense = compressed("identity")
    before = bits(model)
    recover(recovery, model, {"head": decompositions["head"]}, batches)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "head.U.weight" in changed and changed <= {"head.U.weight", "head.V.weight"}
    before = bits(dense)
    recover(recovery, dense, decompositions, batches)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@every_recovery
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "recovery '{}' needs batches"),
        ([], "no batches"),
        (iter([1]), "recovery '{}' goes over batches many times.*not a generator"),
    ],
)
def test_missing_batches_are_named_and_nothing_changes(recovery, batches, message):
    model, decompositions, _, _ = compressed("identity")
    before = bits(model)
    with pytest.raises(ValueError, match=message.format(recovery)):
        recover(recovery, model, decompositions, batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failure_midway_gives_every_u_back():
    model, decompositions, batches, _ = compressed("identity")
    model.blocks[1].down.V.register_forward_hook(lambda *_: torch.full((100, 7), float("nan"), dtype=torch.float64))
    before = bits(model)
    with pytest.raises(ValueError, match="NaN or infinite activations reach layer 'blocks.2.up'"):
        closed_form(model, decompositions=decompositions, batches=batches)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == 1


@every_recovery
def test_a_layer_nobody_calls_is_named(recovery):
    model, decompositions, batches, _ = compressed("identity")
    model.blocks.append(copy.deepcopy(model.blocks[0]))
    model.forward = lambda x: model.head(x)
    with pytest.raises(ValueError, match="no (calibration input|gradient) reache[sd] layer 'blocks.0.up'"):
        recover(recovery, model, decompositions, batches)


def test_few_tokens_warn_and_enough_do_not():
    model, decompositions, batches, _ = compressed("identity", removed=0.2)
    few = [(x[:15], y[:15]) for x, y in batches]
    with pytest.warns(UserWarning, match="fewer than 10 tokens per rank.*with 60 tokens for 12"):
        closed_form(model, decompositions=decompositions, batches=few)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed_form(model, decompositions=decompositions, batches=batches)


def test_compress_hands_it_what_it_needs():
    _, decompositions, batches, dense = compressed()
    one, other = copy.deepcopy(dense), copy.deepcopy(dense)
    compress(one, Method("gram", recovery="closed_form"), 0.5, decompositions=decompositions, batches=batches)
    compress(other, Method("gram"), 0.5, decompositions=decompositions)
    assert not torch.equal(one.head.U.weight, other.head.U.weight)
    closed_form(other, decompositions=decompositions, batches=batches)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
