"""The papers' methods as named points on three axes: which ruler, which ranks, which recovery."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from prehab_lib.allocation import Step
from prehab_lib.inputs import check_choice
from prehab_lib.rivals import correction, svd_llm_update

# What is done to the factors after surgery, in place.  Training afterwards is `rehab`.
RECOVERIES: dict[str, Step] = {
    "closed_form": Step(svd_llm_update.closed_form, svd_llm_update.check_arguments),
    "projected_gradient": Step(correction.projected_gradient, correction.check_arguments),
}


@dataclass(frozen=True)
class Method:
    """Keys of `WEIGHTINGS`, `ALLOCATIONS` (or one's own {layer: rank}) and `RECOVERIES` (or None).

    needs: the statistics to collect.  options: further arguments of the allocation, as in
    `replace(METHODS["swift_svd"], options={"alpha": 0.6})`.
    """

    weighting: str
    allocation: str | Mapping[str, int | None] = "uniform"
    recovery: str | None = None
    needs: Set[str] = frozenset()
    source: str = ""
    options: Mapping = field(default_factory=dict)


# The floor of the authors' scripts depends on the ratio: `zero_sum.floors_at`.
SCRIPTS = {"floor": "scripts"}

# name -> weighting, allocation, recovery, statistics, source, options
METHODS = {
    "svd": Method("identity", source="Eckart and Young; Table I, row SVD"),
    "fwsvd": Method("fisher", needs={"fisher_in"}, source="arXiv 2207.00112"),
    "gfwsvd": Method("kronecker", needs={"kron_in", "kron_out"}, source="arXiv 2505.17974"),
    "asvd": Method("activation", "sensitivity", None, {"mean_abs"}, "arXiv 2312.05821, α = 0.5"),
    "svd_llm": Method("gram", needs={"gram"}, source="arXiv 2403.07378, whitening and truncation"),
    # Absent from the paper's last version; step 2 of the released code.
    "svd_llm_update": Method("gram", "uniform", "closed_form", {"gram"}, "arXiv 2403.07378v1"),
    # At equal ranks these two are the same map as svd_llm: only their ranks differ.
    "svd_llm_v2": Method("gram", "grouped", None, {"gram"}, "arXiv 2503.12340"),
    "swift_svd": Method("gram", "importance", None, {"gram", "influence"}, "arXiv 2604.01609"),
    # Gates on the whitened weights; `dobi` has the paper's gates on activations.
    "dobi_svd": Method("gram", "learned", None, {"gram"}, "arXiv 2502.02723, without remap"),
    # At uniform precision.
    "io_svd": Method(
        "gram_logit", "greedy", None, {"gram", "logit_gram", "grad"}, "arXiv 2605.15626"
    ),
    "zs_svd": Method("gram", "zero_sum", None, {"gram", "grad"}, "arXiv 2602.02848", SCRIPTS),
    "zs_svd_corrected": Method(
        "gram", "zero_sum", "projected_gradient", {"gram", "grad"}, "arXiv 2602.02848", SCRIPTS
    ),
}


def method_named(method: str | Method) -> Method:
    """The method behind a name, or the method itself.  Raises ValueError that lists the names."""
    if isinstance(method, Method):
        return method
    check_choice("method", method, METHODS)
    return METHODS[method]
