"""Progress bars for people, silence for batch runs."""

import os
import sys
from collections.abc import Iterable


def progress(items: Iterable, what: str, total: int | None = None) -> Iterable:
    """`items` behind a bar named `what` in a terminal or a live notebook; untouched when nobody
    watches.
    """
    if not _watched():
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, total=total, leave=False)


def _watched() -> bool:
    if (
        os.environ.get("PREHAB_RUN_DIR")
        or os.environ.get("PREHAB_QUIET")
        or os.environ.get("PYTEST_CURRENT_TEST")
    ):
        return False
    if "ipykernel" in sys.modules:
        return bool(
            os.environ.get("JPY_SESSION_NAME")
        )  # set by a Jupyter server, not by papermill or nbval
    return sys.stderr is not None and sys.stderr.isatty()
