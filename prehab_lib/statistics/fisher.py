"""Fisher information of a layer: its diagonal, summed by input or output, and its Kronecker
factors.

All are second moments of per-sample weight gradients G_s (`gradients`), means over samples, with
the labels of the data ("empirical" Fisher) and the model in eval mode.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.gradients import GradientPass, column_squares, sandwich

# What one batch adds: X (B, t, n) and D (B, t, m) -> a sum over its samples.
SAMPLE_STATISTICS = {
    "fisher_in": lambda X, D: column_squares(X, D),  # (n,)   Σ_i F_ij
    "fisher_out": lambda X, D: column_squares(D, X),  # (m,)   Σ_j F_ij
    "kfac_out": lambda X, D: D.flatten(0, 1).T @ D.flatten(0, 1),  # (m, m)   Σ_t g gᵀ
}
TOLERANCE = 1e-3  # relative change of both factors at which the alternating iteration may stop


def sample_means(gradients: GradientPass, wanted: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """layer -> {name: mean over samples}, for names of `SAMPLE_STATISTICS` or "grad" (m, n), from
    one pass.
    """
    wanted = set(wanted)
    totals: dict[str, dict[str, Tensor]] = {name: {} for name in gradients.modules}

    def add(layer: str, name: str, value: Tensor) -> None:
        totals[layer][name] = totals[layer].get(name, 0.0) + on_factor_device(value)

    def receive(layer: str, X: Tensor, D: Tensor) -> None:
        for name in wanted - {"grad"}:
            add(layer, name, SAMPLE_STATISTICS[name](X, D))

    samples = gradients.run(
        receive, (lambda layer, G: add(layer, "grad", G)) if "grad" in wanted else None
    )
    _check_reached(totals)
    return {
        layer: {name: total / samples for name, total in found.items()}
        for layer, found in totals.items()
    }


def kronecker_factors(
    gradients: GradientPass, iterations: int = 10
) -> dict[str, tuple[Tensor, Tensor]]:
    """layer -> A (n, n) and B (m, m), both positive semi-definite, with A ⊗ B nearest to the Fisher
    matrix of vec(W).

    Alternating (power) iteration on the rearranged Fisher from A = I:  B ← mean G_s A G_sᵀ / ‖A‖_F²
    and then A ← mean G_sᵀ B G_s / ‖B‖_F².  Each half is one pass over the batches, in which no
    gradient is stored; it stops once no factor moves by more than a thousandth.  Memory: n² + m²
    numbers a layer.  A has mean eigenvalue 1, the scale is B's.

    Source: GFWSVD (arXiv 2505.17974), whose authors run a Lanczos SVD on the same operator.
    """
    shapes = {name: module.weight.shape for name, module in gradients.modules.items()}
    A = {name: torch.eye(n, dtype=torch.float64) for name, (_, n) in shapes.items()}
    B = {name: torch.eye(m, dtype=torch.float64) for name, (m, _) in shapes.items()}
    for _ in range(iterations):
        before = (A, B)
        B = _half(gradients, A, lambda X, D, fixed: sandwich(X, D, fixed))
        A = _half(gradients, B, lambda X, D, fixed: sandwich(D, X, fixed))
        if all(
            _still(old[name], new[name])
            for old, new in zip(before, (A, B), strict=True)
            for name in shapes
        ):
            break
    scale = {name: float(A[name].diagonal().mean()) or 1.0 for name in shapes}
    return {name: (A[name] / scale[name], B[name] * scale[name]) for name in shapes}


def _half(gradients: GradientPass, fixed: dict[str, Tensor], product) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}

    def receive(layer: str, X: Tensor, D: Tensor) -> None:
        fixed[layer] = fixed[layer].to("cpu" if X.device.type == "mps" else X.device)
        unit = fixed[layer] / fixed[layer].norm().clamp_min(torch.finfo(torch.float64).tiny)
        totals[layer] = totals.get(layer, 0.0) + on_factor_device(product(X, D, unit))

    samples = gradients.run(receive)
    _check_reached({name: totals.get(name) for name in gradients.modules})
    moved = {}
    for name, total in totals.items():
        size = fixed[name].norm().clamp_min(torch.finfo(torch.float64).tiny)
        moved[name] = (total + total.T) / (2 * samples * size)
    return moved


def _still(old: Tensor, new: Tensor) -> bool:
    """Both have converged up to their scale."""
    old, new = old.to(new) / old.norm().clamp_min(1e-300), new / new.norm().clamp_min(1e-300)
    return float((old - new).norm()) < TOLERANCE


def _check_reached(found: dict) -> None:
    silent = [
        name
        for name, value in found.items()
        if value is None or (isinstance(value, dict) and not value)
    ]
    if silent:
        raise ValueError(
            f"no gradient reaches layer {silent[0]!r} (of {len(silent)}): does the loss depend on it?"
        )
