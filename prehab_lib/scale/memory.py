"""What this process holds of the machine's memory: the peak of a call, and what can be given back.

PyTorch's CPU tensors come from the C library, which keeps freed pieces below some size (glibc: 32
MiB) for the next that asks. They count as the process's all the same.
"""

import contextlib
import ctypes
import gc
from collections.abc import Callable

import torch

CLEAR_REFS, STATUS = "/proc/self/clear_refs", "/proc/self/status"


def give_back() -> None:
    """Freed pieces that the C library (glibc) keeps for reuse go back to the system."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: Windows wants a name
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(run: Callable[[], object], device: str | torch.device = "cpu") -> int | None:
    """Bytes that `run` needed at its peak beyond what was held when it began.

    CUDA: as PyTorch's allocator counts them.  CPU: the resident memory of this process, on Linux,
    after `give_back`.  None where the system does not say; `run` is called all the same.
    """
    device = torch.device(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    give_back()
    try:
        with open(CLEAR_REFS, "w") as file:
            file.write("5")  # forget the peak so far
        before = _resident("VmRSS")
    except OSError:
        before = None
    run()
    return None if before is None or device.type != "cpu" else max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    with open(STATUS) as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
