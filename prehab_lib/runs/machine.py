"""What this machine has for runs: cores, memory, GPUs. Nothing here imports torch, which takes four
seconds.

In a container its own bounds count (cgroup 2), not what the machine around it has.
"""

import os
import shutil
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _quota() -> int | None:
    """Whole cores that a container may use, None where it is not bounded."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None


def cores() -> int:
    """Cores this process may use."""
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(seen, _quota() or seen)


def free_memory_mb() -> int | None:
    """Memory that processes could take now (MB = 2**20 bytes); None where the system does not say."""
    free = _free_in_system()
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is not None and used is not None:
        bounded = max(0, limit - used) // 2**20
        return bounded if free is None else min(free, bounded)
    return free


def _free_in_system() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(
            int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable")
        )
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):  # Windows
        return None


def gpus() -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES: those this process may see."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name.strip() and name.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [
        str(number)
        for number, line in enumerate(listed.stdout.splitlines())
        if line.startswith("GPU ")
    ]
