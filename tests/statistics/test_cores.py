"""LAPACK on one core: where a matrix is small, and the setting comes back."""

import pytest
import torch

from prehab_lib.statistics import cores
from prehab_lib.weightings import decompose


def test_one_core_for_a_small_matrix_and_as_before_afterwards(monkeypatch):
    @cores.one_core
    def seen(A, wrong=False):
        if wrong:
            raise ValueError("no matrix")
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert seen(torch.ones(3, 4)) == 1 and torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="no matrix"):
            seen(torch.ones(3, 4), wrong=True)
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(cores, "SMALL", 3)
        assert seen(torch.ones(3, 4)) == 2
        monkeypatch.setattr(torch.linalg, "svd", lambda A: pytest.fail(f"{torch.get_num_threads()} cores"))
        with pytest.raises(pytest.fail.Exception, match="2 cores"):
            decompose(torch.eye(5), weighting="identity")
        monkeypatch.setattr(cores, "SMALL", 5)
        with pytest.raises(pytest.fail.Exception, match="1 cores"):
            decompose(torch.eye(5), weighting="identity")
    finally:
        torch.set_num_threads(before)
