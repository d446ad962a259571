"""A model of repeated blocks, small enough to brute-force, and everything an allocation may ask for."""

import re

import pytest
import torch
from torch import nn

from prehab_lib.decomposition import Decomposition
from prehab_lib.evaluate import classification_loss
from prehab_lib.stats import collect
from prehab_lib.weightings import decompose_all
from tests.helpers import toy_batches

ONE_BUDGET = ("zero_sum", "greedy")  # spent over all layers together; refused where it cannot be met


class Block(nn.Module):
    def __init__(self, n: int, m: int):
        super().__init__()
        self.up, self.down = nn.Linear(n, m), nn.Linear(m, n)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks of unequal strength, a gate that no rank makes smaller, and a head: forward(x (B, n))."""

    def __init__(self, n: int = 24, m: int = 40, classes: int = 12, depth: int = 3, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.blocks = nn.ModuleList(Block(n, m) for _ in range(depth))
            self.gate, self.head = nn.Linear(n, 1), nn.Linear(n, classes)
            for number, block in enumerate(self.blocks):
                block.down.weight.data *= 3.0 / (1 + number)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x * torch.sigmoid(self.gate(x)))


def stack_batches(**options) -> list:
    """(x (100, 24), labels of 12 classes) tuples."""
    return toy_batches(**({"count": 4, "size": 100, "n": 24, "classes": 12} | options))


TRAINING = stack_batches(count=10, seed=3)


def trained(steps: int = 60) -> Stack:
    """A stack that has learned something, so that truncation hurts: its loss is about half of chance."""
    model = Stack()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        classification_loss(model, TRAINING[step % len(TRAINING)]).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def everything(weighting: str = "gram") -> dict:
    """decompositions, model, stats, task_loss, batches, validation: as keyword arguments of an allocation."""
    model, batches = trained(), stack_batches()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    stats = collect(model, batches, names, needs={"gram", "influence", "grad"}, task_loss=classification_loss)
    return {
        "decompositions": decompose_all(model, stats, weighting, names),
        "model": model,
        "stats": stats,
        "task_loss": classification_loss,
        "batches": batches,
        "validation": stack_batches(count=2, seed=7),
    }


def spectrum(shape: tuple[int, int], sigma) -> Decomposition:
    """A decomposition of which only the shape and the singular values matter."""
    m, n = shape
    k = min(shape)
    return Decomposition(torch.zeros(m, k), torch.zeros(k, n), torch.as_tensor(sigma, dtype=torch.float64).expand(k))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def refuses(call, *cases, also=lambda: True):
    """Each of `cases`, ({argument: value}, message), is refused in those words; `also` holds after each."""
    for arguments, message in cases:
        with pytest.raises(ValueError) as refused:
            call(**arguments)
            pytest.fail(f"{arguments} were taken")
        assert re.search(message, str(refused.value)), (arguments, message)
        assert also(), arguments


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors whose bits are not as they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def untouched(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Same names, same bits, no hooks, every layer dense again."""
    now = model.state_dict()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in now) and not hooks
