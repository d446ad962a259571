"""Gates that are trained: one number γ a layer, the position of its gate T(γ), under one budget.

They stand on components of whitened weights, or of activations (`dobi`).
Source: Dobi-SVD (arXiv 2502.02723), with lr 5/2048 falling to 4/2048, 640 steps, β = 10 throughout,
and λ from 30 to 400 by target.  At β = 10 only the two components beside γ give a gradient, so β
starts wide here.  A λ far above the slope of the loss moves all γ in step, and nothing is learned;
one far below lets the budget go, and rounding has to find it again.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, endless, frozen, loss_of, mode, move, seeded
from prehab_lib.budget import check_removed
from prehab_lib.inputs import check_choice, check_positive, check_seed, check_whole
from prehab_lib.progress import progress
from prehab_lib.rivals.shared import Ranks, Shape, costs_of

NAME = "allocation 'learned'"
FORMS = ("weights", "activations")  # what the gates stand on
STEEPEST = 20.0  # above it a loss counts by the tangent of e^loss: float32 has no e^89


def gate(gamma: Tensor, count: int, beta: float) -> Tensor:
    """T (count,) in (0, 1), descending: T_i = ½ tanh(β (γ − i)) + ½ at i = ½, 1½, … of components.

    gamma: a scalar.  beta: steepness; β → ∞ keeps the first γ components.  The paper counts i in
    whole numbers.  Half a component less makes γ = k the cut after k components, and Σ T_i ≈ γ.
    """
    centres = torch.arange(count, device=gamma.device, dtype=gamma.dtype) + 0.5
    return torch.sigmoid(2 * beta * (gamma - centres))  # ½ tanh(z) + ½, without its cancellation


@dataclass(frozen=True)
class Settings:
    """steps of Adam at lr, in shares of min(m, n) a step; beta: steepness of the gate at the first
    and the last step, growing by a constant factor; weight_of_budget: λ, None for 3 e^loss at the
    first step, which has no unit; accounting: a key of `ACCOUNTINGS`; seed: for losses that draw
    random numbers; gates_on: a name in `FORMS`.  Raises ValueError naming a bad setting.
    """

    steps: int = 50
    lr: float = 0.02
    beta: tuple[float, float] = (1.0, 10.0)
    weight_of_budget: float | None = None
    accounting: str = "break_even"
    seed: int = 0
    gates_on: str = "weights"

    def __post_init__(self):
        check_whole(1, steps=self.steps)
        check_seed(self.seed)
        if not isinstance(self.beta, tuple | list) or len(self.beta) != 2:
            wanted = "give the first and the last steepness, for example (1, 10)"
            raise ValueError(f"beta = {self.beta!r}: {wanted}")
        for steepness in self.beta:
            check_positive(beta=steepness)
        check_positive(lr=self.lr)
        if self.weight_of_budget is not None:
            check_positive(weight_of_budget=self.weight_of_budget)
        costs_of({}, self.accounting)
        check_choice("gates_on", self.gates_on, FORMS)

    def beta_at(self, step: int) -> float:
        first, last = self.beta
        return first * (last / first) ** (step / max(1, self.steps - 1))


class Gates:
    """Where the gates of several layers stand: γ from 0 to min(m, n) each, trained as a share of
    it, in float64 on the CPU.  Layers (m, n) in which no rank saves parameters have no gate.

    Start: where R(γ) = 1 − removed with the same share of parameters kept in every layer.
    """

    def __init__(self, shapes: Mapping[str, Shape], removed: float, accounting="break_even"):
        costs = costs_of({name: shapes[name] for name in sorted(shapes)}, accounting)
        self.costs = {name: cost for name, cost in costs.items() if cost.most}
        self.kept = 1 - check_removed(removed)
        self.beta = 1.0
        self._place = {name: place for place, name in enumerate(self.costs)}
        numbers = [(cost.full, cost.unit, cost.dense) for cost in self.costs.values()]
        columns = torch.tensor(numbers, dtype=torch.float64).reshape(-1, 3)
        self._full, self._unit, self._dense = columns.T
        gammas = float(self.kept) * self._dense / self._unit
        self.shares = (gammas / self._full).requires_grad_()  # (layers,)

    def share(self, name: str) -> Tensor:
        """γ / min(m, n) of a layer, a scalar that gradients flow through."""
        return self.shares[self._place[name]]

    def gammas(self) -> dict[str, float]:
        return dict(zip(self.costs, (self.shares.detach() * self._full).tolist(), strict=True))

    def kept_now(self) -> Tensor:
        """R(γ) = Σ min(c γ, m n) / Σ m n, with c what a rank costs."""
        numbers = torch.minimum(self.shares * self._full * self._unit, self._dense)
        return numbers.sum() / self._dense.sum()

    def outside(self) -> Tensor:
        """Σ relu(−γ)² + relu(γ − min(m, n))²."""
        gammas = self.shares * self._full
        return (torch.relu(-gammas).square() + torch.relu(gammas - self._full).square()).sum()

    def whole_ranks(self) -> Ranks:
        """Ranks in the budget: all γ / min(m, n) moved by the largest share that fits, and rounded.

        A layer is dense where its rank passes the largest that saves parameters; rank 1 is the
        least.  Equal layers at equal γ get equal ranks, even where one could have one more.
        """
        moves = []  # (the move at which a layer takes one rank more, layer, what that costs)
        for name, gamma in self.gammas().items():
            cost = self.costs[name]
            for rank in range(2, min(cost.most + 1, cost.full) + 1):
                price = cost.saved(rank - 1) - cost.saved(rank)
                moves.append(((rank - 0.5 - gamma) / cost.full, name, price))
        ranks = dict.fromkeys(self.costs, 1)
        left = sum(cost.saved(1) - (1 - self.kept) * cost.dense for cost in self.costs.values())
        for _, group in groupby(sorted(moves), key=lambda move: move[0]):
            together = list(group)
            left -= sum(price for _, _, price in together)
            if left < 0:
                break
            for _, name, _ in together:
                ranks[name] += 1
        return {name: r if r <= self.costs[name].most else None for name, r in ranks.items()}


def learn(
    model: nn.Module,
    gates: Gates,
    in_place: Callable[[], AbstractContextManager],
    task_loss: Callable,
    batches: Iterable,
    settings: Settings,
) -> None:
    """Lower e^loss + λ |R(γ) − R_target| + Σ relu(−γ)² + relu(γ − min(m, n))² by Adam on γ alone.

    in_place: () -> context in which the model's layers look at `gates`.  One batch a step, in eval
    mode, with frozen weights.  Raises ValueError for a loss that is not finite (naming the step) or
    has no gradient, and for no batch.
    """
    optimizer = torch.optim.Adam([gates.shares], lr=settings.lr)
    stream = endless(batches)
    target, weight = float(gates.kept), settings.weight_of_budget
    with ExitStack() as inside:
        around = mode(model, training=False), frozen(model), seeded(model, settings.seed)
        for context in (*around, in_place(), torch.enable_grad()):
            inside.enter_context(context)
        for step in progress(range(settings.steps), NAME):
            gates.beta = settings.beta_at(step)
            loss = loss_of(task_loss, model, move(next(stream), device_of(model)))
            value = float(loss.detach())
            at = f"at step {step} of {NAME}"
            if not math.isfinite(value):
                raise ValueError(f"task_loss is {value} {at}: look at the data and the precision")
            slope = None
            if loss.requires_grad:
                (slope,) = torch.autograd.grad(loss, gates.shares, allow_unused=True)
            if slope is None:
                raise ValueError(f"task_loss of {NAME} does not depend on the layers' gates")
            # e^loss is differentiated by hand: no large number travels through the model.
            exponential = math.exp(min(value, STEEPEST))
            if weight is None:
                weight = 3 * exponential
            price = weight * (gates.kept_now() - target).abs() + gates.outside()
            gradient = torch.autograd.grad(price, gates.shares)[0] + exponential * slope
            if not torch.isfinite(gradient).all():
                raise ValueError(f"the gradient of γ is not finite {at}: look at the precision")
            gates.shares.grad = gradient
            optimizer.step()
