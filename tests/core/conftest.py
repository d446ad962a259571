from functools import partial

import pytest

from prehab_lib.allocation import ALLOCATIONS


@pytest.fixture
def few_steps(monkeypatch):
    """Ranks are learned in a few steps: nothing in a contract depends on their number."""
    monkeypatch.setitem(ALLOCATIONS, "learned", partial(ALLOCATIONS["learned"], steps=4))
