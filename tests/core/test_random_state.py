"""What the suite does before every test (conftest): the same random state, whatever ran before."""

import random

import numpy as np
import pytest
import torch

from tests.conftest import SEED


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_from_the_same_random_state(turn):
    """The first turn leaves other states behind than it found."""
    expected = random.Random(SEED).random(), np.random.RandomState(SEED).rand()
    assert (random.random(), np.random.rand()) == expected
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(SEED)))
