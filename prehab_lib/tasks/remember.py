"""The user's cache folder, and texts in it that take seconds to make and milliseconds to read."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """`PREHAB_CACHE`, else ~/.cache/prehab_lib."""
    return Path(os.environ.get("PREHAB_CACHE") or Path.home() / ".cache" / "prehab_lib")


def remembered(name: str, key, make: Callable[[], list]) -> list:
    """`make()`, or what it gave when it was last called with this key.  Both as JSON has them: a
    tuple returns as a list.

    A damaged entry is made again; a disk that is full or read-only costs the keeping only.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = cache_folder() / "texts" / f"{name}-{digest}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = make()
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(made), encoding="utf-8")
        part.replace(file)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return made
