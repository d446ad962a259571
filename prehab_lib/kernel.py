"""A Python kernel that dies with the process that started it: `python -m prehab_lib.kernel -f CONNECTION_FILE`."""

import os
import signal
import sys


def die_with(parent: int) -> None:
    """Have the system kill this process when `parent`, its parent process, dies. Linux only; elsewhere a no-op.

    Elsewhere ipykernel polls its parent once a second, and the runner's processes read a pipe that their parent holds.
    """
    if sys.platform != "linux":
        return
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


if __name__ == "__main__":
    if told := os.environ.get("JPY_PARENT_PID"):
        die_with(int(told))
    if sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # the work folder is no place for modules
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance()
