"""The dose of a rank term R at weight λ: ‖λ ∇R‖ / ‖∇L‖, how hard it pulls beside the task loss L.

λ travels badly between models, surrogates and conventions; the dose does not.
"""

import math
from collections.abc import Iterable, Iterator
from statistics import fmean

import torch
from torch import Tensor

from prehab_lib.precision import whole

MEASURED = 4  # batches: ‖∇L‖ of a single one varies by a tenth and more


def lam_of(dose: float, term, losses: Iterable[Tensor], parameters: list[Tensor]) -> float:
    """λ = dose · mean ‖∇L‖ / ‖∇R‖, gradients by `parameters`, which stay as they are.

    term: a `rank_term.RankTerm`.  losses: of a few batches.  The mean of their norms is what a step
    sees; the norm of their mean would fall with the number of batches, and to nothing for a model
    that has converged.  Raises ValueError where one of the two is 0 or not finite.
    """

    def norm_of(loss: Tensor, lam: float) -> float:
        term.backward(loss, lam)
        pull = _norm(_gradients(parameters))
        for parameter in parameters:
            parameter.grad = None
        return pull

    term.refresh(0)
    task = fmean(norm_of(loss, 0.0) for loss in losses)
    rank = norm_of(0.0 * parameters[0].sum(), 1.0)
    if not 0 < task / (rank or math.inf) < math.inf:
        found = f"‖∇L‖ is {task:.3g} and ‖∇R‖ {rank:.3g} at the start"
        raise ValueError(f"no λ has dose = {dose}, {found}: give lam in its place")
    return dose * task / rank


class Dose:
    """‖λ ∇R‖ / ‖∇L‖: called when the gradients are those of L alone, asked when all are there."""

    def __init__(self, parameters: list[Tensor]):
        self.parameters, self.task = parameters, []

    def __call__(self) -> None:
        self.task = [gradient.clone() for gradient in _gradients(self.parameters)]

    def value(self) -> float:
        """0 without R, infinite without a gradient of L."""
        pairs = zip(_gradients(self.parameters), self.task, strict=bool(self.task))
        rank, task = _norm(both - task for both, task in pairs), _norm(self.task)
        self.task = []  # before the optimiser's moments want their memory
        return rank / task if task else math.inf if rank else 0.0


def _gradients(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        yield torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(whole(t.double().square().sum())) for t in tensors))
