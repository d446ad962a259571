"""A Python kernel that dies with the process that started it: `python -m prehab_lib.runs.kernel -f
CONNECTION_FILE`.
"""

import contextlib
import os
import signal
import sys
import time

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def die_with(parent: int) -> None:
    """Have the system kill this process when `parent`, its parent process, dies. Linux only;
    elsewhere a no-op.

    Elsewhere ipykernel polls its parent once a second, and the runner's processes read a pipe that
    their parent holds.
    """
    if sys.platform != "linux":
        return
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def adopt_orphans() -> None:
    """Whatever a descendant of this process leaves behind becomes its child, so that it can be
    found. Linux only.
    """
    if sys.platform == "linux":
        _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value)


def end_descendants(seconds: float = 1.5) -> None:
    """Kill all that this process started, directly or not: the kernel, and what a notebook left
    running.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        there = [one for one in psutil.Process().children(recursive=True) if _at_work(one)]
        if not there:
            return
        for one in there:
            with contextlib.suppress(psutil.Error):
                one.kill()
        time.sleep(0.02)


def _at_work(process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    if told := os.environ.get("JPY_PARENT_PID"):
        die_with(int(told))
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # the work folder is no place for modules
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
