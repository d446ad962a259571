"""A Python kernel that dies with the process that started it.

Started as `python -m prehab_lib.runs.kernel -f CONNECTION_FILE`, by `unit.py`.
"""

import contextlib
import os
import signal
import sys
import time

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def die_with(parent: int) -> None:
    """Have the system kill this process when `parent`, its parent process, dies. Linux only.

    Elsewhere it does nothing: ipykernel then polls its parent once a second, and a unit reads a
    pipe that its driver holds.
    """
    if sys.platform != "linux":
        return
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def adopt_orphans() -> None:
    """What a descendant leaves behind becomes a child of this process, to be found. Linux only."""
    if sys.platform == "linux":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value)


def end_descendants(seconds: float = 1.5) -> None:
    """Kill all that this process started, directly or not: also what a notebook left running."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        children = psutil.Process().children(recursive=True)
        alive = [child for child in children if _is_alive(child)]
        if not alive:
            return
        for child in alive:  # those it starts meanwhile are met in the next round
            with contextlib.suppress(psutil.Error):
                child.kill()
        time.sleep(0.02)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    die_with(int(os.environ["JPY_PARENT_PID"]))
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # the work folder is no place for modules
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
