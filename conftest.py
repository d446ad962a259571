"""How notebooks are compared with their stored outputs, and what holds for every test.

nbval compares text exactly. Here decimals may differ by one part in a thousand, which other processors and thread
counts need; whole numbers and words stay exact. nbval also runs cells in a way that keeps `value;` from hiding its
output (computationalmodelling/nbval#194); that is set right. A kernel that dies as it starts is started again: its ports were
free when they were chosen, and another process may have taken one since. nbval is pinned in pyproject.toml: this reaches into it.
"""

import atexit
import contextlib
import os
import re
import shutil
import tempfile

from nbval import kernel, plugin

from prehab_lib.runs.pool import QUIET

RELATIVE, ABSOLUTE = 1e-3, 1e-6
STARTS = 3  # of a kernel, at most
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?")

os.environ |= QUIET | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # two workers share two cores
os.environ["PREHAB_WIDGETS"] = "0"  # also where the tests are started from within a notebook
for name in ("PREHAB_RUN_DIR", "PREHAB_PROFILE", "PREHAB_NOTEBOOK", "PREHAB_NOTEBOOK_DIR", "PREHAB_DATA"):
    os.environ.pop(name, None)
# Kernels that start at once would lock one another out of the user's history file and say so on stderr.
os.environ["IPYTHONDIR"] = tempfile.mkdtemp(prefix="prehab-ipython-")
atexit.register(shutil.rmtree, os.environ["IPYTHONDIR"], ignore_errors=True)


def same_number(one: str, other: str) -> bool:
    """Equal as text, or decimals that differ by less than the tolerance."""
    if one == other:
        return True
    if not re.search(r"[.eE]", one) or not re.search(r"[.eE]", other):
        return False
    first, second = (float(text.replace("−", "-")) for text in (one, other))
    return abs(first - second) <= ABSOLUTE + RELATIVE * abs(second)


def same_output(one: str, other: str) -> bool:
    """Equal words, and equal numbers within the tolerance; spaces may differ, for columns move with their digits."""
    words = [" ".join(NUMBER.sub("#", text).split()) for text in (one, other)]
    numbers = [NUMBER.findall(text) for text in (one, other)]
    return words[0] == words[1] and all(map(same_number, *numbers))


class Output(str):
    """Text of an output, equal to another within the tolerance."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return isinstance(other, str) and same_output(self, other)

    def __ne__(self, other):
        return not self == other


def _sanitize(self, text, _original=plugin.IPyNbCell.sanitize):
    return Output(_original(self, text)) if isinstance(text, str) else text


def _execute_cell_input(self, cell_input, allow_stdin=None):
    return self.kc.execute(cell_input, allow_stdin=bool(allow_stdin), store_history=True, stop_on_error=False)


def start_new_kernel(*arguments, _original=kernel.start_new_kernel, **settings):
    """nbval's, up to `STARTS` times; the last failure is told."""
    for _ in range(STARTS - 1):
        with contextlib.suppress(RuntimeError):
            return _original(*arguments, **settings)
    return _original(*arguments, **settings)


kernel.start_new_kernel = start_new_kernel
plugin.IPyNbCell.sanitize = _sanitize
kernel.RunningKernel.execute_cell_input = _execute_cell_input
