"""The kernels of the notebook tests: one that dies as it starts, a port having been taken, is started again."""

import pytest
from nbval import kernel

DIED = "Kernel died before replying to kernel_info"


def test_a_kernel_that_dies_as_it_starts_is_started_again_twice(monkeypatch):
    real, asked = kernel.KernelManager, []

    def manager(**settings):
        asked.append(settings)
        if len(asked) <= failures:
            raise RuntimeError(DIED)
        return real(**settings)

    monkeypatch.setattr(kernel, "KernelManager", manager)
    failures = 9
    with pytest.raises(RuntimeError, match=DIED):
        kernel.RunningKernel(kernel.CURRENT_ENV_KERNEL_NAME)
    assert len(asked) == 3
    failures, asked[:] = 2, []
    running = kernel.RunningKernel(kernel.CURRENT_ENV_KERNEL_NAME)
    try:
        assert running.is_alive() and len(asked) == 3
    finally:
        running.stop()
