"""Small models and data that several tests share."""

import torch
from torch import nn

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
    """A weight (m, n), its statistics, and the inputs (rows, n) they come from."""
    X = skewed(rows, n, seed, spread)
    W = torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    gram = X.T @ X / rows
    return W, LayerStats(gram=gram, mean_abs=X.abs().mean(0), max_abs=X.abs().amax(0), tokens=rows), X


class Toy(nn.Module):
    """Two readers of one tensor, then one more layer: forward(images or x, attention_mask=None)."""

    def __init__(self, n: int = 12, m: int = 16, classes: int = 4, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query, self.key = nn.Linear(n, m), nn.Linear(n, m)
            self.out = nn.Linear(m, classes)

    def forward(self, x, attention_mask=None):
        h = torch.relu(self.query(x)) + torch.tanh(self.key(x))
        return self.out(h if h.ndim == 2 else h.mean(1))


def toy_batches(count: int = 8, size: int = 32, n: int = 12, classes: int = 4, seed: int = 0) -> list:
    """(x (size, n), labels) tuples whose labels a linear map explains."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(n, classes, generator=torch.Generator().manual_seed(99))
    xs = [torch.randn(size, n, generator=generator) for _ in range(count)]
    return [(x, (x @ rule).argmax(1)) for x in xs]
