"""Fisher information of a layer: its diagonal, summed by input or output, and Kronecker factors.

All are second moments of per-sample weight gradients G_s (`gradients`), means over samples, with
the labels of the data ("empirical" Fisher) and the model in eval mode.  A layer keeps the sums
asked for (n, m, n², m² or m n numbers in float64), a batch at most LIMIT numbers of G.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from prehab_lib.roots import on_factor_device
from prehab_lib.statistics.gradients import GradientPass

LIMIT = 2**25  # numbers of per-sample gradients held at once
TOLERANCE = 1e-3  # relative change of both factors at which the alternating iteration may stop
TINY = torch.finfo(torch.float64).tiny


def column_squares(X: Tensor, D: Tensor) -> Tensor:
    """Σ_s Σ_i (G_s)_ij², (n,), for G_s = D_sᵀ X_s.  Swap X and D for the row sums, (m,)."""
    # Not as (Xᵀ (D Dᵀ) X)_jj without G: where tokens cancel (attention's keys), nothing is left.
    # In float64: squares of small gradients vanish in float32.
    return sum(on_factor_device(d.mT @ x).square().sum((0, 1)) for x, d in _chunks(X, D))


def sandwich(X: Tensor, D: Tensor, A: Tensor) -> Tensor:
    """Σ_s G_s A G_sᵀ (m, m) for G_s = D_sᵀ X_s, A (n, n).  Swap X and D for Σ_s G_sᵀ B G_s."""
    (t, n), m = X.shape[1:], D.shape[2]
    if t * (m + n) < m * n:  # few tokens: cheaper without G, in float64 because terms cancel
        X, D = on_factor_device(X), on_factor_device(D)
        return D.flatten(0, 1).T @ (X @ A.to(X) @ X.mT @ D).flatten(0, 1)
    A, total = A.to(X), 0.0
    for x, d in _chunks(X, D):
        G = d.mT @ x  # (b, m, n)
        total = total + (G @ A).transpose(0, 1).flatten(1) @ G.transpose(0, 1).flatten(1).T
    return total


def _chunks(X: Tensor, D: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, LIMIT // (X.shape[2] * D.shape[2]))
    return zip(X.split(size), D.split(size), strict=True)


# What one batch adds: X (B, t, n) and D (B, t, m) -> a sum over its samples.
SAMPLE_STATISTICS = {
    "fisher_in": lambda X, D: column_squares(X, D),  # (n,)   Σ_i F_ij
    "fisher_out": lambda X, D: column_squares(D, X),  # (m,)   Σ_j F_ij
}


def sample_means(gradients: GradientPass, wanted: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """layer -> {name: mean over samples}, of `SAMPLE_STATISTICS` or "grad" (m, n), in one pass."""
    sums: dict[str, dict[str, Tensor]] = {layer: {} for layer in gradients.modules}

    def add(layer: str, value: Tensor, name: str = "grad") -> None:
        sums[layer][name] = sums[layer].get(name, 0.0) + on_factor_device(value)

    def receive(layer: str, X: Tensor, D: Tensor) -> None:
        for name, product in SAMPLE_STATISTICS.items():
            if name in wanted:
                add(layer, product(X, D), name)

    samples = gradients.run(receive, add if "grad" in wanted else None)
    for values in sums.values():
        for name in values:
            values[name] = values[name] / samples
    return sums


def _sample_means(model, modules, batches, wanted, *, task_loss, fisher="sample", **_) -> dict:
    """For `PASSES`.  fisher: "batch" takes the squares, but not "grad", of each batch's mean."""
    layers: dict[str, dict[str, Tensor]] = {name: {} for name in modules}
    by_batch = {name for name in wanted if name != "grad" and fisher == "batch"}
    for per_sample, names in ((False, by_batch), (True, set(wanted) - by_batch)):
        if names:
            run = GradientPass(model, modules, batches, task_loss, per_sample)
            for name, values in sample_means(run, names).items():
                layers[name] |= values
    return layers


def kronecker_factors(model, modules, batches, wanted, *, task_loss, iterations=10, **_) -> dict:
    """layer -> {"kron_in": A (n, n), "kron_out": B (m, m)}, A ⊗ B nearest to the Fisher of vec(W).

    Alternating (power) iteration on the rearranged Fisher from A = I:  B ← mean G_s A G_sᵀ / ‖A‖_F²
    and then A ← mean G_sᵀ B G_s / ‖B‖_F², each in a pass over the batches.  It stops once no factor
    moves by more than a thousandth.  A has mean eigenvalue 1, the scale is B's.
    Source: GFWSVD (arXiv 2505.17974), whose authors run a Lanczos SVD on the same operator.
    """
    gradients = GradientPass(model, modules, batches, task_loss)
    A, B = {}, {}
    for name, module in modules.items():
        m, n = module.weight.shape
        A[name], B[name] = (torch.eye(size, dtype=torch.float64) for size in (n, m))
    for _iteration in range(iterations):
        old_A, old_B = A, B
        B = _half(gradients, A, sandwich)
        A = _half(gradients, B, lambda X, D, B: sandwich(D, X, B))
        if all(_still(old_A[name], A[name]) and _still(old_B[name], B[name]) for name in modules):
            break
    factors = {}
    for name in modules:
        scale = float(A[name].diagonal().mean()) or 1.0
        factors[name] = {"kron_in": A[name] / scale, "kron_out": B[name] * scale}
    return factors


def _half(gradients: GradientPass, fixed: dict[str, Tensor], product: Callable) -> dict:
    """Half an iteration: the factors of one side, given the fixed ones of the other."""
    totals: dict[str, Tensor] = {}

    def receive(layer: str, X: Tensor, D: Tensor) -> None:
        fixed[layer] = fixed[layer].to("cpu" if X.device.type == "mps" else X.device)
        unit = fixed[layer] / fixed[layer].norm().clamp_min(TINY)
        totals[layer] = totals.get(layer, 0.0) + on_factor_device(product(X, D, unit))

    samples = gradients.run(receive)
    sizes = {name: 2 * samples * fixed[name].norm().clamp_min(TINY) for name in totals}
    return {name: (total + total.T) / sizes[name] for name, total in totals.items()}


def _still(old: Tensor, new: Tensor) -> bool:
    """Whether a factor has converged up to its scale."""
    old, new = old.to(new) / old.norm().clamp_min(TINY), new / new.norm().clamp_min(TINY)
    return float((old - new).norm()) < TOLERANCE


# name -> what `stats.collect` calls, see `PASSES`
LOSS_STATISTICS = dict.fromkeys((*SAMPLE_STATISTICS, "grad"), _sample_means)
LOSS_STATISTICS |= dict.fromkeys(("kron_in", "kron_out"), kronecker_factors)
