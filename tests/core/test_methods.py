from prehab_lib.allocation import ALLOCATIONS
from prehab_lib.methods import METHODS, RECOVERIES, Method, method_named
from prehab_lib.weightings import WEIGHTINGS


def test_every_method_is_a_point_on_the_axes():
    for name, method in METHODS.items():
        assert method.weighting in WEIGHTINGS and method.allocation in ALLOCATIONS and method.source, name
        assert method.recovery in (None, *RECOVERIES) and method_named(name) is method, name
    own = Method("identity")
    assert method_named(own) is own
