"""The k directions in which a layer's outputs live, found batch by batch in three ways."""

from collections.abc import Callable

import torch
from torch import Tensor


class Stacked:
    """The top right singular vectors of all activations stacked: the best k directions for Σ ‖A_i −
    A_i V Vᵀ‖².
    """

    def __init__(self, rank: int):
        self.rank, self.seen, self.gram = rank, 0, 0

    def add(self, A: Tensor) -> None:
        """A (t, m) of one batch."""
        self.seen, self.gram = self.seen + 1, self.gram + A.T @ A

    def basis(self) -> Tensor:
        """V (m, k) with orthonormal columns."""
        return torch.linalg.eigh(self.gram).eigenvectors[:, -self.rank :].flip(1)


class Incremental:
    """Dobi-SVD's way, without its centring: principal directions of the batches' own top-k
    subspaces, one after the other.

    Every batch counts as much as any other, and within it every direction: the singular values of
    A_i are thrown away. Between batches k directions are kept, so the order of the batches matters.
    """

    def __init__(self, rank: int):
        self.rank, self.seen, self.rows = (
            rank,
            0,
            None,
        )  # rows (k, m): principal directions times their weights

    def add(self, A: Tensor) -> None:
        rows = top_rows(A, self.rank)
        if self.rows is not None:
            _, weights, Vh = torch.linalg.svd(torch.cat([self.rows, rows]), full_matrices=False)
            rows = weights[: self.rank, None] * Vh[: self.rank]
        self.seen, self.rows = self.seen + 1, rows

    def basis(self) -> Tensor:
        return torch.linalg.svd(self.rows, full_matrices=False).Vh.T


class IncrementalCentred:
    """The same by scikit-learn's `IncrementalPCA`, as the paper's code has it: the mean over rows
    is taken off first.

    Directions have no mean: v and −v span the same line.  Of k rows it leaves k − 1 directions, and
    the last is chance.
    """

    def __init__(self, rank: int):
        from sklearn.decomposition import IncrementalPCA

        self.rank, self.seen, self.pca, self.like = rank, 0, IncrementalPCA(rank), None

    def add(self, A: Tensor) -> None:
        import numpy as np

        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # its variance of a single row, which nobody asked for
            self.pca.partial_fit(top_rows(A, self.rank).cpu().numpy())
        self.seen, self.like = self.seen + 1, A

    def basis(self) -> Tensor:
        return torch.linalg.qr(torch.from_numpy(self.pca.components_).to(self.like).T).Q


SUBSPACES: dict[str, Callable[[int], Stacked | Incremental | IncrementalCentred]] = {
    "stacked": Stacked,
    "incremental": Incremental,
    "incremental_centred": IncrementalCentred,
}


def top_rows(A: Tensor, rank: int) -> Tensor:
    """The top right singular vectors of A (t, m) as rows, (rank, m).  Raises ValueError where A has
    fewer than `rank`.
    """
    if min(A.shape) < rank:
        raise ValueError(
            f"activations of shape {tuple(A.shape)} have no {rank} directions: take larger batches"
        )
    return torch.linalg.svd(A, full_matrices=False).Vh[:rank]
