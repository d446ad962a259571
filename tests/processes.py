"""Processes that tests started: whether they live, and waiting for what they do."""

import time
from pathlib import Path


def alive(pid: int) -> bool:
    """Running, and not merely waiting to be buried."""
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition, what: str = "it did not happen in time", seconds: float = 60):
    """What the condition gives, as soon as that is true.  what: is said where that takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return value
