"""Progress bars for people, silence for batch runs; and lines that no terminal stops."""

import os
import sys
from collections.abc import Iterable

SILENT = ("PREHAB_RUN_DIR", "PREHAB_QUIET", "PYTEST_CURRENT_TEST")


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """`items` behind a bar named `what` in a terminal or a live notebook, else untouched."""
    if "ipykernel" in sys.modules:  # a Jupyter server sets this, papermill and nbval do not
        watched = os.environ.get("JPY_SESSION_NAME")
    else:
        watched = sys.stderr is not None and sys.stderr.isatty()
    if not watched or any(os.environ.get(name) for name in SILENT):
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, total=total, leave=False)


def say(line: str) -> None:
    """Print a line whole, also where several threads print: what a terminal does not know is
    escaped, one that is gone stops nothing.
    """
    try:
        print(line + "\n", end="", flush=True)
    except UnicodeEncodeError:
        print(line.encode("ascii", "backslashreplace").decode() + "\n", end="", flush=True)
    except OSError:  # a closed pipe, a full disk
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
