"""Adaptive λ: chosen while prehab trains, by the validation loss of the model after its cut.

Both searches give the model T steps and take 3 T.  Source: future work (ii), in forms of our own.
"""

import copy
import math

import torch
from torch import Tensor

from prehab_lib.batches import device_of, frozen, loss_of, mode, move, requiring_grad, seeded
from prehab_lib.beyond.truncation import truncation
from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.precision import Memory
from prehab_lib.rank_term import term_of

DELTAS = (1.4, 0.7, 0.35)  # of log λ: the next one each time the winning sign flips
LEAST, MOST = 1e-5, 1e2  # λ stays above 0: log λ has no way back from there
STAGES = ((8, 8), (4, 4), (2, 1))  # of halving: so many arms, up to 1 / so many of the steps


class Run:
    """Prehab of one model, in place and in spans; without dropout it is `prehab` to the last bit.

    Step t sees batch t, and dropout from seed + t: arms differ by λ alone.  Raises ValueError for a
    bad number, an unknown surrogate, or no batches.
    """

    def __init__(self, model, task_loss, batches, stats, *, surrogate, lr: float, seed: int = 0):
        check_positive(lr=lr)
        self.model, self.task_loss, self.batches, self.stats = model, task_loss, [*batches], stats
        self.seed, self.step = seed, 0
        check_whole(1, **{"the number of batches": len(self.batches)})
        self.term = term_of(surrogate, model, stats, "weight", "sum", Memory())
        self.weights = [layer.weight for layer in self.term.layers.values()]
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, weight_decay=0.0)

    def copy(self) -> "Run":
        """Weights, AdamW's moments and the term's own state, apart; batches and statistics not."""
        return copy.deepcopy(self, {id(shared): shared for shared in (self.batches, self.stats)})

    def loss(self, batch) -> Tensor:
        return loss_of(self.task_loss, self.model, move(batch, device_of(self.model)), trained=True)

    def train(self, steps: int, lam: float) -> "Run":
        training = mode(self.model, training=True, statistics=False)
        with training, frozen(self.model), requiring_grad(self.weights, True):
            for step in range(self.step, self.step + steps):
                self.term.refresh(step)
                self.optimizer.zero_grad()
                with seeded(self.model, self.seed + step):
                    loss = self.loss(self.batches[step % len(self.batches)])
                self.term.backward(loss, lam)
                self.optimizer.step()
        self.step += steps
        return self


def race(arms: list[tuple[Run, float]], steps: int, validate) -> tuple[list, list[dict]]:
    """Copies of the arms (run, λ) after `steps` more, best first, equals in order; a row for each.

    validate(model) -> loss of a cut copy.  A row: step, lam, steps, loss; ValueError for all NaN.
    """
    found = []
    for run, lam in arms:
        run = run.copy().train(steps, lam)
        row = {"step": run.step, "lam": lam, "steps": steps, "loss": float(validate(run.model))}
        found.append((run, row))
    found.sort(key=lambda arm: (not math.isfinite(arm[1]["loss"]), arm[1]["loss"]))
    if not math.isfinite(found[0][1]["loss"]):
        raise ValueError("no arm has a finite loss after the cut: lower lr or λ")
    return [(run, row["lam"]) for run, row in found], [row for _, row in found]


def lookahead(run: Run, validate, lam: float, rounds: int, span: int, deltas=DELTAS):
    """Rounds of three arms, log λ and log λ ± δ, `span` steps each: the best goes on, with its λ.

    Returns (run, rows of `race`); the given run stays.  A tie leaves λ.  Raises as `race`.
    """
    check_positive(lam=lam)
    check_whole(1, rounds=rounds, span=span)
    rows, last, flips = [], 0, 0
    for _ in range(rounds):
        delta = deltas[min(flips, len(deltas) - 1)]
        lams = [lam, *(min(max(lam * math.exp(e), LEAST), MOST) for e in (-delta, delta))]
        [(run, best), *_], more = race([(run, trial) for trial in lams], span, validate)
        sign = (best > lam) - (best < lam)
        flips, last, lam = flips + (sign * last < 0), sign or last, best
        rows += more
    return run, rows


def halving(run: Run, validate, lams, steps: int):
    """Eight λ for an eighth of the steps, the best four to a quarter, two to the end, one stays.

    Returns as `lookahead`.  Raises ValueError for other numbers of λ or steps.
    """
    arms, rows, done = [(run, lam) for lam in lams], [], 0
    if len(arms) != 8 or steps % 8:
        raise ValueError(f"halving takes 8 λ, not {len(arms)}, and steps in eighths, not {steps}")
    for count, part in STAGES:
        arms, more = race(arms[:count], steps // part - done, validate)
        rows, done = rows + more, steps // part
    return arms[0][0], rows


def hypergradient(run: Run, held_out, ranks: dict, lam: float, lr: float) -> dict[str, float]:
    """layer -> ∂ L_val(Trunc(W − lr (∇L + λ ∇R))) / ∂ λ_ℓ, a diagnostic; ranks: by layer."""
    run, backs = run.copy(), {}
    run.term.refresh(run.step)
    task = torch.autograd.grad(run.loss(run.batches[run.step % len(run.batches)]), run.weights)
    rank = torch.autograd.grad(sum(run.term.values()), run.weights)
    for name, W, g, r in zip(run.term.layers, run.weights, task, rank, strict=True):
        moved, gram = W.detach() - lr * (g + lam * r), run.stats[name].gram.to(W)
        W.data, backs[name] = truncation(moved, gram, ranks[name])
    outer = torch.autograd.grad(run.loss(held_out), run.weights)
    every = zip(backs.items(), outer, rank, strict=True)
    return {name: -lr * float((back(g) * r).sum()) for (name, back), g, r in every}
