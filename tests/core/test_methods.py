import pytest

from prehab_lib.allocation import ALLOCATIONS
from prehab_lib.methods import METHODS, RECOVERIES, Method, method_named
from prehab_lib.weightings import WEIGHTINGS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_point_on_the_axes(name):
    method = METHODS[name]
    assert method.weighting in WEIGHTINGS and method.allocation in ALLOCATIONS
    assert method.recovery is None or method.recovery in RECOVERIES
    assert method.source
    assert method_named(name) is method


def test_a_method_of_ones_own_is_a_method():
    own = Method("identity")
    assert method_named(own) is own


def test_unknown_method_names_the_known_ones():
    with pytest.raises(ValueError, match="method = 'SVD' is not known: choose one of svd, "):
        method_named("SVD")
