"""How fast a device is, measured in a few seconds, and how much memory it has to give."""

import functools
import os
import time
from collections.abc import Callable

import torch

# kind -> (what to time for a square matrix of a size, operations of it).  The counts are those of
# `preflight`.
KINDS: dict[str, tuple[Callable, Callable[[int], float]]] = {
    "matmul": (lambda A: A @ A, lambda n: 2 * n**3),
    "cholesky": (
        lambda A: torch.linalg.cholesky_ex(A @ A.T + len(A) * torch.eye(len(A)).to(A)),
        lambda n: (2 + 1 / 3) * n**3,
    ),
    "eigh": (lambda A: torch.linalg.eigh(A + A.T), lambda n: 9 * n**3),
    "qr": (lambda A: torch.linalg.qr(A), lambda n: 8 / 3 * n**3),
    "svd": (lambda A: torch.linalg.svd(A), lambda n: 26 * n**3),
    "copy": (lambda A: A + 1, lambda n: 2 * 4 * n**2),  # bytes read and written, in float32
}
SIZES = {
    "cpu": {"matmul": 1024, "cholesky": 1024, "eigh": 768, "qr": 768, "svd": 384, "copy": 4096}
}
LARGER = {"matmul": 8192, "cholesky": 8192, "eigh": 4096, "qr": 4096, "svd": 1024, "copy": 16384}


@functools.cache
def rate(kind: str, dtype: torch.dtype, device: str = "cpu") -> float:
    """Operations a second of one `kind` in `dtype` ("copy": bytes a second), the middle one of
    three runs.
    """
    if torch.device(device).type == "mps" and dtype == torch.float64:
        device = "cpu"  # no float64 there: sums and factorisations happen on the CPU
    run, operations = KINDS[kind]
    size = SIZES.get(torch.device(device).type, LARGER)[kind]
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(size, size, generator=generator).to(device, dtype)
    seconds = sorted(_seconds(lambda: run(A), device) for _ in range(3))
    return operations(size) / seconds[1]


def _seconds(run: Callable, device: str) -> float:
    started = time.perf_counter()
    run()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def available_gib(device: str = "cpu") -> float | None:
    """GiB that are free on the device now; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    try:
        with open("/proc/meminfo") as lines:
            free = next(line for line in lines if line.startswith("MemAvailable"))
        return int(free.split()[1]) / 2**20
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return None
