"""Square roots of Grams: where every factorisation starts, in float64, also for singular ones."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

ROWS = 64  # of a Gram that are compared at a time


def psd_root(A: Tensor) -> Tensor:
    """L (n, n) in float64 with L Lᵀ = A, positive semi-definite.  Raises as `checked_gram`.

    Any root gives the same truncation.  Cholesky's takes n³ / 3 operations; where its pivots are
    round-off, eigenvectors times root eigenvalues take 9 n³.
    """
    A = checked_gram(A, average=False)
    L = _safe_cholesky(A)
    if L is not None:
        return L
    eigenvalues, Q = psd_eigen(A)
    return Q.mul_(eigenvalues.sqrt())


def psd_eigen(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,), ascending, and eigenvectors Q (n, n) of a positive semi-definite A.

    In float64.  Eigenvalues below n · eps · λ_max are round-off and become 0, so none is negative.
    Raises as `checked_gram` does.
    """
    A = checked_gram(A, average=False)
    eigenvalues, Q = torch.linalg.eigh(A)
    if eigenvalues[0] < -1e-5 * eigenvalues.abs().max():
        raise ValueError("the Gram has negative eigenvalues: it is no second moment")
    round_off = A.shape[0] * torch.finfo(A.dtype).eps * eigenvalues[-1].clamp_min(0)
    return torch.where(eigenvalues > round_off, eigenvalues, 0), Q


def invertible_root(A: Tensor, ridge: float = 1e-6) -> Tensor:
    """L (n, n), lower triangular, L Lᵀ = A, or A + δ (tr A / n) I where A is all but singular.

    For the side of a ruler that must be undone.  δ is `ridge`, ten times more as long as Cholesky
    fails.  A = 0 gives the identity.  Raises as `checked_gram` does, and where A is far from
    positive semi-definite.
    """
    A = checked_gram(A)
    identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
    mean = A.diagonal().mean()
    L = identity if mean <= 0 else _safe_cholesky(A)
    if L is not None:
        return L
    while ridge < 1:
        L, failed = torch.linalg.cholesky_ex(A / mean + ridge * identity)
        if not failed:
            return mean.sqrt() * L
        ridge *= 10
    problem = "the matrix has negative eigenvalues as large as its mean"
    raise ValueError(f"{problem}: it is no second moment")


def _safe_cholesky(A: Tensor) -> Tensor | None:
    """Cholesky's factor of a symmetric A where its pivots stand clear of round-off, else None."""
    L, failed = torch.linalg.cholesky_ex(A)
    clear = L.diagonal().min() ** 2 > A.shape[0] * torch.finfo(A.dtype).eps * A.diagonal().max()
    return L if not failed and clear else None


def on_factor_device(A: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Where sums and factorisations happen: the same device, but the CPU for MPS (no float64)."""
    A = A.detach()
    return A.to("cpu", dtype) if A.device.type == "mps" else A.to(dtype)


@contextmanager
def exactly() -> Iterator[None]:
    """Autocast is off inside, as a with block or a decorator: one's own sums keep their dtype."""
    with ExitStack() as off:
        for device in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(device):
                off.enter_context(torch.autocast(device, enabled=False))
        yield


def checked_gram(A: Tensor, average: bool = True) -> Tensor:
    """A (n, n) in float64 with round-off between A and Aᵀ averaged out.

    average=False spares the copy, for those who read A as LAPACK does, on and below the diagonal.
    Raises ValueError where A is not finite, not square or not symmetric.
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"a Gram is a square matrix, not one of shape {tuple(A.shape)}")
    A = on_factor_device(A)
    low, high = torch.aminmax(A)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError("the Gram has NaN or infinite entries: look at the calibration data")
    tolerance = 2e-6 * float(torch.maximum(-low, high))
    for start in range(0, len(A), ROWS):
        rows, rest = slice(start, start + ROWS), slice(start, None)
        if (A[rows, rest] - A[rest, rows].T).abs_().max() > tolerance:
            raise ValueError("the Gram is not symmetric")
    return (A + A.T) / 2 if average else A
