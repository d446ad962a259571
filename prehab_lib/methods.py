"""The papers' methods as named points on three axes: which ruler, which ranks, which recovery."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Method:
    """weighting: a key of `WEIGHTINGS`; allocation: a key of `ALLOCATIONS`; recovery: a key of `RECOVERIES`, or None.

    needs: the statistics to collect.  source: where the method comes from.
    """

    weighting: str
    allocation: str = "uniform"
    recovery: str | None = None
    needs: frozenset[str] = frozenset()
    source: str = ""


# What is done to the factors after surgery, in closed form: name -> fn(model, ...).  Training afterwards is `rehab`.
RECOVERIES: dict[str, Callable[[nn.Module], None]] = {}

METHODS = {
    "svd": Method("identity", source="Eckart and Young; Table I, row SVD"),
    "svd_llm": Method("gram", needs=frozenset({"gram"}), source="arXiv 2403.07378, whitening and truncation"),
    # Its dynamic ranks are an allocation; at uniform ranks it is the same map as svd_llm.
    "swift_svd": Method("gram", needs=frozenset({"gram"}), source="arXiv 2604.01609, closed form at uniform ranks"),
}


def method_named(method: str | Method) -> Method:
    """The method behind a name, or the method itself.  Raises ValueError that lists the known names."""
    if isinstance(method, Method):
        return method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method = {method!r} is not known: choose one of {', '.join(METHODS)}")
    return METHODS[method]
