"""Small models and data that several tests share."""

import math
from itertools import accumulate

import pytest
import torch
from torch import nn

from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.stats import LayerStats


def skewed(rows: int, n: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    """Correlated inputs (rows, n) in float64 whose scales differ by 10^spread, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(rows, n, dtype=torch.float64, generator=generator)
    mix = torch.eye(n, dtype=torch.float64) + 0.3 * torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5
    return X * torch.logspace(0, spread, n, dtype=torch.float64) @ mix


def layer(
    m: int, n: int, rows: int, seed: int = 0, spread: float = 3.0
) -> tuple[torch.Tensor, LayerStats, torch.Tensor]:
    """A weight (m, n), all its statistics, and the inputs (rows, n) they come from; each row is a sample with a gradient."""
    X = skewed(rows, n, seed, spread)
    W = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return W, statistics_of(X, skewed(rows, m, seed + 2, spread=1.0)), X


def statistics_of(X: torch.Tensor, D: torch.Tensor) -> LayerStats:
    """Of inputs X (rows, n) and gradients G_s = d_s x_sᵀ, D (rows, m); summed in their dtype."""
    rows = len(X)
    squares = (D.square().T @ X.square()) / rows  # (m, n), the diagonal of the Fisher matrix
    means = dict(gram=X.T @ X / rows, mean_abs=X.abs().mean(0), max_abs=X.abs().amax(0), logit_gram=D.T @ D / rows)
    means |= dict(fisher_in=squares.sum(0), fisher_out=squares.sum(1))
    means["kron_in"] = (X * D.square().sum(1, keepdim=True)).T @ X / rows
    means["kron_out"] = (D * X.square().sum(1, keepdim=True)).T @ D / rows
    return LayerStats(tokens=rows, **{name: value.double() for name, value in means.items()})


def scaled(stats: LayerStats, by: float) -> LayerStats:
    """The same statistics in other units."""
    return LayerStats(**{name: by * value for name, value in vars(stats).items() if isinstance(value, torch.Tensor)})


def permuted(stats: LayerStats, order: torch.Tensor) -> LayerStats:
    """Statistics of the layer whose inputs come in another order."""
    by_input = {name: getattr(stats, name)[order] for name in ("mean_abs", "max_abs", "fisher_in")}
    square = {name: getattr(stats, name)[order][:, order] for name in ("gram", "kron_in")}
    by_output = {name: getattr(stats, name) for name in ("fisher_out", "kron_out", "logit_gram")}
    return LayerStats(**by_input, **square, **by_output)


def random_factors(m, n, rank, seed=0, bias=True, dtype=torch.float32) -> LowRankLinear:
    """A low-rank layer (m, n) whose factors are standard normal."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.randn(shape, generator=generator).to(dtype) for shape in ((m, rank), (rank, n)))
    return LowRankLinear.from_factors(Factors(U, V), torch.randn(m, generator=generator).to(dtype) if bias else None)


def log_spaced(m: int, n: int, condition: float, seed: int = 0) -> torch.Tensor:
    """(m, n) in float64 with random singular vectors and singular values spaced evenly in logs from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    p = min(m, n)
    U, V = (torch.linalg.qr(torch.randn(k, p, dtype=torch.float64, generator=generator)).Q for k in (m, n))
    return (U * torch.logspace(0, -math.log10(condition), p, dtype=torch.float64)) @ V.T


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the angle between two tensors of one shape, as vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


class Toy(nn.Module):
    """Two readers of one tensor, then one more layer: forward(x, attention_mask=None); labels are for the loss."""

    def __init__(self, n: int = 12, m: int = 16, classes: int = 4, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query, self.key = nn.Linear(n, m), nn.Linear(n, m)
            self.out = nn.Linear(m, classes)

    def forward(self, x, attention_mask=None, labels=None):
        h = torch.relu(self.query(x)) + torch.tanh(self.key(x))
        return self.out(h if h.ndim == 2 else h.mean(1))


def toy_batches(count: int = 8, size: int = 32, n: int = 12, classes: int = 4, seed: int = 0) -> list:
    """(x (size, n), labels) tuples whose labels a linear map explains."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(n, classes, generator=torch.Generator().manual_seed(99))
    xs = [torch.randn(size, n, generator=generator) for _ in range(count)]
    return [(x, (x @ rule).argmax(1)) for x in xs]


def killed_after(calls: int, task_loss):
    """The loss, and Ctrl-C in every call after so many."""
    made = []

    def loss(model, batch):
        made.append(batch)
        if len(made) > calls:
            raise KeyboardInterrupt
        return task_loss(model, batch)

    return loss


def check_slopes(slope, gates, loss, step, **tolerance):
    """Each entry of `slope` is the central difference of `loss()` along one share of the gates, over 2 · step."""
    for place in range(len(gates.costs)):
        at = []
        for way in (step, -step):
            with torch.no_grad():
                gates.shares[place] += way
                at.append(float(loss()))
                gates.shares[place] -= way
        assert float(slope[place]) == pytest.approx((at[0] - at[1]) / (2 * step), **tolerance)


def peak_gib(run):
    """What `run()` gives, the most GiB of tensors that lay in memory meanwhile, and what is left of them."""
    options = dict(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True)
    with torch.profiler.profile(**options) as profile:
        given = run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = [0, *accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))]
    return given, max(held) / 2**30, held[-1] / 2**30
