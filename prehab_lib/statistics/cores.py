"""How many cores LAPACK takes."""

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

SMALL = 2048  # rows and columns up to which one core is about as fast as several


def one_core(function: Callable) -> Callable:
    """The function with one core for a small matrix, its first argument.

    Threads of a decomposition meet thousands of times.  Where anything else runs on the machine
    they wait for each other: an SVD of 1024 x 1024 took 22 s on two cores and 0.4 s on one.
    """

    @wraps(function)
    def alone(A: Tensor, *rest, **options):
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if max(A.shape) <= SMALL else threads)
        try:
            return function(A, *rest, **options)
        finally:
            torch.set_num_threads(threads)

    return alone
