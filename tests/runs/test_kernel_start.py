"""The kernels of the notebook tests: one that dies as it starts, a port having been taken meanwhile, is started again."""

import pytest
from nbval import kernel

DIED = "Kernel died before replying to kernel_info"


def dying(monkeypatch, times: int) -> list:
    """nbval's manager of kernels fails so many times first; -> a list that grows by one each time it is asked."""
    asked, real = [], kernel.KernelManager

    def manager(**settings):
        asked.append(settings)
        if len(asked) <= times:
            raise RuntimeError(DIED)
        return real(**settings)

    monkeypatch.setattr(kernel, "KernelManager", manager)
    return asked


def test_a_kernel_that_dies_as_it_starts_is_started_again(monkeypatch):
    asked = dying(monkeypatch, times=2)
    running = kernel.RunningKernel(kernel.CURRENT_ENV_KERNEL_NAME)
    try:
        assert running.is_alive() and len(asked) == 3
    finally:
        running.stop()


def test_a_kernel_that_cannot_start_is_told(monkeypatch):
    asked = dying(monkeypatch, times=9)
    with pytest.raises(RuntimeError, match=DIED):
        kernel.RunningKernel(kernel.CURRENT_ENV_KERNEL_NAME)
    assert len(asked) == 3
