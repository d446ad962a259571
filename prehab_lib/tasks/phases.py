"""The phases of a long run: how long each took, and what it has freed."""

import time

from prehab_lib.scale.memory import give_back


def took(clock: dict[str, float], phase: str, started: float) -> None:
    """Notes the seconds since `started` (of perf_counter); freed memory goes back to the system."""
    clock[phase] = time.perf_counter() - started
    give_back()
