import pytest
import torch

from tests.stack import everything


@pytest.fixture(scope="session")
def given():
    """What an allocation may ask for, once for all tests: whoever changes it puts it back."""
    torch.set_num_threads(1)
    return everything()
