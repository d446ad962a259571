import math

import pytest
import torch
from torch import nn

from prehab_lib.budget import break_even_rank, rank_for
from prehab_lib.evaluate import classification_loss
from prehab_lib.methods import Method
from prehab_lib.rivals import learned as room
from prehab_lib.rivals.accounting import ACCOUNTINGS
from prehab_lib.rivals.gates import STEEPEST, Gates, Settings
from prehab_lib.rivals.learned import gated, learn_ranks, learned
from prehab_lib.rivals.trial import loss_at
from prehab_lib.scale.lazy import decompose_lazily
from prehab_lib.surgery import compress
from prehab_lib.weightings import decompose_all
from tests.helpers import check_slopes, killed_after
from tests.stack import bits, everything, untouched

SHAPES = {"a": (24, 40), "b": (40, 24), "k": (8, 32), "square": (16, 16), "gate": (1, 24)}
accountings = pytest.mark.parametrize("accounting", ACCOUNTINGS)


@pytest.fixture(scope="module")
def given():
    torch.set_num_threads(1)
    return everything()


def placed(gates: Gates, **gammas: float) -> Gates:
    """The same gates, put by hand."""
    full = {name: terms.full for name, terms in gates.terms.items()}
    shares = {name: gammas.get(name, 0.0) / full[name] for name in full}
    gates.shares = torch.tensor(list(shares.values()), dtype=torch.float64, requires_grad=True)
    return gates


def cost(ranks, shapes=SHAPES, accounting="break_even"):
    unit = {"break_even": sum, "remap": max}[accounting]
    return sum(math.prod(shapes[n]) if rank is None else rank * unit(shapes[n]) for n, rank in ranks.items())


# The budget


@accountings
@pytest.mark.parametrize("removed", [0.05, 0.2, 0.4, 0.73, 0.95])
def test_gates_start_at_the_target(accounting, removed):
    gates = Gates(SHAPES, removed, accounting, None)
    assert float(gates.kept_now().detach()) == pytest.approx(1 - removed, abs=1e-12)
    for name, gamma in gates.gammas().items():
        m, n = SHAPES[name]
        assert gamma == pytest.approx((1 - removed) * (m * n / (m + n) if accounting == "break_even" else min(m, n)))
    assert "gate" not in gates.gammas()


@accountings
def test_the_budget_is_counted_by_hand(accounting):
    """γ = 3 and 30 (beyond full rank) on (24, 40) and (40, 24): 3 · 64 and a dense 960, or 3 · 40 and 960."""
    gates = placed(Gates({"a": (24, 40), "b": (40, 24)}, 0.4, accounting, None), a=3.0, b=30.0)
    unit = 64 if accounting == "break_even" else 40
    assert float(gates.kept_now().detach()) == pytest.approx((3 * unit + 960) / 1920)
    (slope,) = torch.autograd.grad(gates.kept_now(), gates.shares)
    torch.testing.assert_close(
        slope, torch.tensor([24 * unit / 1920, 0.0], dtype=torch.float64)
    )  # a dense layer costs no more


def test_gates_outside_their_layer_are_pulled_back():
    gates = placed(Gates({"a": (24, 40), "b": (40, 24)}, 0.4, "break_even", None), a=-2.0, b=27.0)
    assert float(gates.outside().detach()) == pytest.approx(2**2 + 3**2)
    assert float(placed(gates, a=0.0, b=24.0).outside().detach()) == 0


@accountings
@pytest.mark.parametrize("removed", [0.02, 0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize("seed", range(5))
def test_whole_ranks_fill_the_budget_and_stay_within(accounting, removed, seed):
    gates = Gates(SHAPES, removed, accounting, None)
    generator = torch.Generator().manual_seed(seed)
    placed(gates, **{n: t.full * float(torch.rand(1, generator=generator)) * 1.2 - 1 for n, t in gates.terms.items()})
    ranks = gates.whole_ranks()
    total = sum(math.prod(SHAPES[name]) for name in ranks)
    stored = cost(ranks, accounting=accounting)
    assert stored <= (1 - removed) * total
    largest_step = max(terms.unit for terms in gates.terms.values())
    assert stored > (1 - removed) * total - largest_step or all(rank is None for rank in ranks.values())
    for name, rank in ranks.items():
        most = break_even_rank(SHAPES[name]) if accounting == "break_even" else min(SHAPES[name])
        assert rank is None or 1 <= rank <= most


def test_whole_ranks_by_hand():
    """Two layers of 64 numbers a rank share 960: fifteen ranks."""
    gates = Gates({"a": (24, 40), "b": (24, 40)}, 0.5, "break_even", None)
    assert placed(gates, a=11.4, b=3.3).whole_ranks() == {"a": 12, "b": 3}  # 11 + 3, and the nearer to its next half
    assert placed(gates, a=11.0, b=4.0).whole_ranks() == {"a": 11, "b": 4}
    assert placed(gates, a=21.0, b=14.0).whole_ranks() == {"a": 11, "b": 4}  # both move by the same share


def test_a_layer_above_break_even_is_dense_and_counted_so():
    shapes = {"a": (24, 40), "b": (24, 40)}
    ranks = placed(Gates(shapes, 0.2, "break_even", None), a=24.0, b=8.0).whole_ranks()
    assert ranks == {"a": None, "b": 9}  # 960 + 9 · 64 = 1536 = 0.8 · 1920
    remapped = placed(Gates(shapes, 0.2, "remap", None), a=24.0, b=14.4).whole_ranks()
    assert remapped == {"a": 24, "b": 14}  # 38 · 40 ≤ 1536; every rank is stored as factors


def test_rank_one_is_the_least():
    gates = Gates({"thin": (2, 40), "a": (24, 40)}, 0.9, "break_even", None)
    assert placed(gates, thin=-5.0, a=1.0).whole_ranks() == {"thin": 1, "a": 1}


@pytest.mark.parametrize("removed", [0.1, 0.37, 0.5, 0.8])
def test_without_a_step_of_learning_equal_layers_keep_their_uniform_rank(removed):
    shapes = {f"h.{i}": (24, 40) for i in range(7)}
    assert set(Gates(shapes, removed, "break_even", None).whole_ranks().values()) == {rank_for((24, 40), removed)}


def test_a_plan_to_start_from():
    gates = Gates(SHAPES, 0.4, "break_even", {"a": 3, "b": None, "k": 2, "square": 5, "gate": None})
    assert gates.gammas() == pytest.approx({"a": 3, "b": 24, "k": 2, "square": 5})


# The gated layers


@pytest.mark.parametrize("ruler", ["identity", "gram"])
def test_open_gates_change_nothing_and_steep_ones_truncate(ruler, given):
    model, x = given["model"], given["batches"][0]
    cuts = decompose_all(model, given["stats"], ruler)
    gates = Gates({name: found.shape for name, found in cuts.items()}, 0.5, "break_even", dict.fromkeys(cuts))
    gates.beta, dense = 1e4, model(x[0])
    with torch.no_grad():
        gates.shares.fill_(2.0)
        with gated(model, cuts, gates):
            torch.testing.assert_close(model(x[0]), dense, rtol=1e-4, atol=1e-4)
        ranks = {name: 1 + place for place, name in enumerate(gates.terms)}
        placed(gates, **ranks)
        with gated(model, cuts, gates):
            loss = float(classification_loss(model, x))
    assert loss == pytest.approx(loss_at(model, cuts, ranks, classification_loss, [x]), rel=1e-5)


def test_the_slope_of_the_loss_is_its_finite_difference(given):
    model, x, cuts = given["model"].double(), given["batches"][0], given["decompositions"]
    batch = (x[0].double(), x[1])
    gates = Gates({name: found.shape for name, found in cuts.items()}, 0.5, "break_even", None)
    try:
        with gated(model, cuts, gates):
            (slope,) = torch.autograd.grad(classification_loss(model, batch), gates.shares)
            check_slopes(slope, gates, lambda: classification_loss(model, batch), 1e-5, rel=1e-5, abs=1e-8)
    finally:
        model.float()


# Learning


def test_the_loss_falls_below_that_of_uniform_ranks(given):
    found = learn_ranks(removed=0.6, **given)
    uniform = {name: rank_for(cut.shape, 0.6) for name, cut in given["decompositions"].items() if name != "gate"}
    data = given["model"], given["decompositions"]
    at = [loss_at(*data, ranks, given["task_loss"], given["batches"]) for ranks in (found.ranks, uniform)]
    assert at[0] < 0.9 * at[1]
    assert abs(found.rows[-1]["kept"] - 0.4) < 0.05


class Two(nn.Module):
    """Two equal layers side by side, of which the classes depend on one alone, all but a thousandth."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.loud, self.quiet = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x):
        return 3 * self.loud(x) + 3e-3 * self.quiet(x)


def two(model):
    with torch.no_grad():
        model = model or Two()
        xs = [torch.randn(64, 24, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        batches = [(x, model(x).argmax(1)) for x in xs]
    return {"model": model, "task_loss": classification_loss, "batches": batches}


@accountings
def test_the_layer_the_loss_looks_at_gets_more_than_its_uniform_rank(accounting):
    given = two(None)
    cuts = decompose_all(given["model"], None, "identity")
    found = learn_ranks(cuts, 0.6, **given, accounting=accounting)
    uniform = rank_for((24, 24), 0.6) if accounting == "break_even" else int(0.4 * 24)
    assert found.ranks["quiet"] < uniform < (found.ranks["loud"] or 24)
    assert cost(found.ranks, dict.fromkeys(found.ranks, (24, 24)), accounting) <= 0.4 * 2 * 24 * 24
    assert found.gammas["quiet"] < found.gammas["loud"]


def test_a_better_plan_to_start_from_is_where_it_starts(given):
    plan = {name: 1 for name in given["decompositions"]}
    found = learn_ranks(removed=0.5, **given, start=plan, steps=1, lr=1e-6)
    assert found.gammas == pytest.approx(dict.fromkeys(found.gammas, 1.0), abs=1e-3)
    assert found.rows[0]["kept"] < 0.2


def test_shapes_of_grouped_query_attention(given):
    """Keys and values with fewer rows than columns, and the other way round, keep to their own full rank."""
    model = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, 32), nn.Linear(32, 12))
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    batches = [(x, (x[:, :12]).argmax(1))]
    cuts = decompose_all(model, None, "identity")
    found = learn_ranks(cuts, 0.3, model=model, task_loss=classification_loss, batches=batches, steps=20, lr=0.1)
    shapes = {name: cut.shape for name, cut in cuts.items()}
    assert all(rank is None or 1 <= rank <= break_even_rank(shapes[name]) for name, rank in found.ranks.items())
    assert cost(found.ranks, shapes) <= 0.7 * sum(math.prod(shape) for shape in shapes.values())


def test_the_same_seed_gives_the_same_ranks_and_it_decides_random_losses(given):
    def noisy(model, batch):
        return classification_loss(model, batch) * (1 + torch.randn(()).abs())

    noise = given | {"task_loss": noisy}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    found = [learn_ranks(removed=0.5, **noise, steps=6, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0].gammas != found[2].gammas
    assert torch.equal(torch.get_rng_state(), state)


def test_the_rows_tell_the_way(given):
    rows = learn_ranks(removed=0.5, **given, steps=5, beta=(1, 16)).rows
    assert [row["beta"] for row in rows] == pytest.approx([1, 2, 4, 8, 16])
    assert rows[0]["kept"] == pytest.approx(0.5) and [row["step"] for row in rows] == list(range(5))


def test_lazy_decompositions_give_the_same_ranks_and_are_freed(given):
    lazy = decompose_lazily(given["model"], given["stats"], "gram", given["decompositions"])
    shelf = next(iter(lazy.values())).shelf
    assert learned(removed=0.5, **(given | {"decompositions": lazy}), steps=4) == learned(removed=0.5, **given, steps=4)
    assert not shelf.kept


@pytest.mark.parametrize("loss", [60.0, 1000.0])
def test_a_huge_loss_stays_in_numbers(loss, given):
    """e^1000 is no number: above STEEPEST the slope of e^loss stays what it is there."""
    huge = given | {"task_loss": lambda model, batch: classification_loss(model, batch) + loss}
    found = learn_ranks(removed=0.5, **huge, steps=3)
    assert loss > STEEPEST and all(math.isfinite(gamma) for gamma in found.gammas.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_learn_too(dtype, given):
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 12)).to(dtype)
    batches = [(x.to(dtype), y) for x, y in given["batches"]]
    cuts, before = decompose_all(model, None, "identity"), bits(model)
    found = learn_ranks(cuts, 0.5, model=model, task_loss=classification_loss, batches=batches, steps=5)
    assert all(math.isfinite(gamma) for gamma in found.gammas.values()) and untouched(model, before)
    start = Gates({name: cut.shape for name, cut in cuts.items()}, 0.5, "break_even", None).gammas()
    assert all(found.gammas[name] != start[name] for name in start)


# What stays as it was


@pytest.mark.parametrize("ends", ["well", "with Ctrl-C", "with NaN"])
def test_the_model_comes_back(ends, given):
    model, before = given["model"].train(), bits(given["model"])
    model.head.weight.requires_grad_(False)
    model.gate.weight.grad = torch.ones_like(model.gate.weight)
    modules = dict(model.named_modules())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    task_loss, error = {
        "well": (classification_loss, None),
        "with Ctrl-C": (killed_after(3, classification_loss), KeyboardInterrupt),
        "with NaN": (lambda model, batch: classification_loss(model, batch) * math.nan, ValueError),
    }[ends]
    try:
        if error is None:
            learned(removed=0.5, **given, steps=5)
        else:
            with pytest.raises(error):
                learned(removed=0.5, **(given | {"task_loss": task_loss}), steps=5)
        assert untouched(model, before) and model.training
        assert all(now is modules[name] for name, now in model.named_modules())
        assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
        assert [name for name, p in model.named_parameters() if p.grad is not None] == ["gate.weight"]
    finally:
        model.head.weight.requires_grad_(True)
        model.gate.weight.grad = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "allocation 'learned' needs model"),
        ({"task_loss": None}, "allocation 'learned' needs task_loss"),
        ({"batches": None}, "allocation 'learned' needs batches"),
        ({"batches": iter([])}, "batches many times.*not a generator"),
        ({"batches": []}, "batches ran out"),
        (
            {"task_loss": lambda model, batch: torch.tensor(math.inf)},
            "task_loss is inf at step 0 of allocation 'learned'",
        ),
        (
            {"task_loss": lambda model, batch: classification_loss(model, batch).detach()},
            "task_loss of allocation 'learned' does not depend on the layers' gates",
        ),
        ({"steps": 0}, "steps = 0"),
        ({"lr": -1.0}, "lr = -1.0"),
        ({"beta": 10.0}, "beta = 10.0: give the first and the last"),
        ({"beta": (1.0, 0.0)}, "beta = 0.0"),
        ({"weight_of_budget": 0}, "weight_of_budget = 0"),
        ({"accounting": "bytes"}, "accounting = 'bytes' is not known: choose one of break_even, remap"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"start": {"head": 3}}, "start lacks layer 'blocks.0.down'"),
    ],
)
def test_what_is_missing_is_named(change, message, given):
    with pytest.raises(ValueError, match=message):
        learned(removed=0.5, **(given | change))


def test_a_start_that_is_no_whole_rank_is_refused(given):
    start = dict.fromkeys(given["decompositions"], 3.7)
    with pytest.raises(ValueError, match="start has rank 3.7 for"):
        learned(removed=0.5, **given, start=start)


def test_a_start_that_does_not_fit_is_refused(given):
    start = dict.fromkeys(given["decompositions"], 25)
    with pytest.raises(ValueError, match="start has rank 25 for 'blocks.0.down': it allows 1 to 24"):
        learned(removed=0.5, **given, start=start)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"task_loss": None}, {}, "needs task_loss"),
        ({"batches": None}, {}, "needs batches"),
        ({}, {"steps": -1}, "steps = -1"),
    ],
)
def test_compress_knows_before_it_decomposes(change, options, message, given, monkeypatch):
    monkeypatch.setattr("prehab_lib.weightings.decompose", lambda *_, **__: pytest.fail("decomposed"))
    arguments = {name: given[name] for name in ("task_loss", "batches", "validation")} | change
    with pytest.raises(ValueError, match=message):
        compress(given["model"], Method("gram", "learned", options=options), 0.5, given["stats"], **arguments)


def test_layers_that_no_rank_makes_smaller_ask_for_nothing(given, monkeypatch):
    monkeypatch.setattr(room, "learn", lambda *_: pytest.fail("trained"))
    only = {"gate": given["decompositions"]["gate"]}
    assert learned(removed=0.5, **(given | {"decompositions": only})) == {"gate": None}


def test_settings_take_lists_from_parameter_files():
    assert Settings(beta=[1, 10], steps=3).beta_at(2) == pytest.approx(10)
    assert Settings(steps=1).beta_at(0) == 1


def test_the_loss_counts_by_its_exponential(given, monkeypatch):
    """At the start the budget is met and its slope is 0, so what Adam gets is the gradient of e^loss."""
    model, cuts, batch = given["model"], given["decompositions"], given["batches"][0]
    seen = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: seen.append(self.param_groups[0]["params"][0].grad))
    learned(removed=0.5, **given, steps=1, beta=(1.0, 1.0), weight_of_budget=1e-9)
    gates = Gates({name: found.shape for name, found in cuts.items()}, 0.5, "break_even", None)
    with gated(model.eval(), cuts, gates):
        (wanted,) = torch.autograd.grad(classification_loss(model, batch).exp(), gates.shares)
    torch.testing.assert_close(seen[0], wanted, rtol=1e-4, atol=1e-6)
