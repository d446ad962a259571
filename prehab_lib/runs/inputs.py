"""What a run reads from outside the library: found before it starts, and hashed for its key.

Names, sizes and times can be as before where the bytes are not, so the bytes are hashed: once, for
the hash is kept beside facts that only the file system writes (the time of a change, the inode).
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from prehab_lib.runs.certificate import write_json
from prehab_lib.tasks.glue import GLUE

# Notebooks call two data sets by shorter names, and score C4 beside every corpus but their own.
SHORT = {"wikitext2": "wikitext-2-raw-v1", "wikitext2-v1": "wikitext-2-v1"}
LARGE = 2**34  # bytes: minutes to read
RACY = 2  # seconds: a file that is younger may change once more within one tick of its clock


def is_path(text: str) -> bool:
    """Text that starts like a path is one, or names a .gguf; "timm/vit" is none."""
    return text.startswith(("./", "../", "~", "/")) or text.lower().endswith(".gguf")


def texts(value) -> list[str]:
    """Every text of a value, also those inside its lists and dictionaries."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, Mapping) else value
    return [text for one in inside for text in texts(one)] if isinstance(value, list | dict) else []


def paths(params: Mapping) -> list[tuple[str, str]]:
    """(parameter, path) of every path among parameters."""
    return [(name, text) for name in params for text in texts(params[name]) if is_path(text)]


def data_sets() -> list[str]:
    """The names in `tasks.data.DATASETS`, which would take seconds to import."""
    from prehab_lib.tasks import rules  # imports pydantic

    glue = [f"glue/{name}" for name in GLUE]
    return list(dict.fromkeys([*rules.table_keys("tasks.data", "DATASETS"), *glue]))


def data_sets_of(params: dict) -> list[str]:
    """Data sets that the parameters name, in the order of `data_sets`."""
    said, corpus = {*texts(params)}, str(params.get("corpus"))
    named = said | {f"glue/{text}" for text in said} | {SHORT[text] for text in said & {*SHORT}}
    named |= {"c4"} if corpus in SHORT or is_path(corpus) else set()
    return [name for name in data_sets() if name in named]


def packaged(params: Mapping) -> dict[str, str]:
    """Name -> place of the packaged models that the parameters name.

    Raises ValueError where the package is not installed.
    """
    from prehab_lib.tasks import rules  # imports pydantic

    names = {*texts(params)} & {*rules.table_keys("save.packaged", "PACKAGED")}
    if names:
        from prehab_lib.save.packaged import place  # imports transformers
    return {name: place(name) for name in sorted(names)}


def digest(file: str | os.PathLike) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class Contents:
    """Hashes of files and folders. file: where they are kept for the next command, if anywhere."""

    def __init__(self, file: Path | None = None):
        self.file, self.lock = file, threading.Lock()  # runs that share data wait for one reading

    def of(self, place: str) -> str:
        """Hash of a file, or of the names and contents of all files below a folder."""
        files, facts, newest, size, kept = _files(place), [], 0.0, 0, {}
        for file in files:
            now = os.stat(file)
            size += now.st_size
            facts.append([file, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino])
            newest = max(newest, now.st_ctime)
        known = hashlib.sha256(repr(facts).encode()).hexdigest()
        with self.lock:
            with suppress(OSError, ValueError, TypeError):  # nothing is kept yet, or it is damaged
                kept = {**json.loads(self.file.read_text(encoding="utf-8"))} if self.file else {}
            if isinstance(kept.get(known), str):
                return kept[known]
            if size > LARGE:
                print(f"reading {place} once, {size >> 30} GiB: a run's key has what it reads")
            parts = [(os.path.relpath(file, place), digest(file)) for file in files]
            kept[known] = hashlib.sha256(repr(parts).encode()).hexdigest()
            if self.file and newest < time.time() - RACY:
                with suppress(OSError):  # of a disk that cannot be written it is read once more
                    write_json(self.file, kept)
        return kept[known]


def _files(place: str) -> list[str]:
    """A file itself, or those below a folder, through links, but for hidden and unreadable ones."""
    place = os.path.expanduser(place)
    found, seen = [place], set()
    for folder, inside, names in os.walk(place, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back
            names, inside[:] = [], []
        seen.add((here.st_dev, here.st_ino))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        found += [os.path.join(folder, name) for name in sorted(names) if not name.startswith(".")]
    return [file for file in found if os.path.isfile(file) and os.access(file, os.R_OK)]
