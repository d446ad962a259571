"""Rank surrogates of R(W L) and their gradients in W without a singular value decomposition."""

from prehab_lib.fast.fast_term import Fast
from prehab_lib.fast.tangents import FAST

__all__ = ["FAST", "Fast"]
