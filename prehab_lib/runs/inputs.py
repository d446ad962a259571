"""What a run reads from outside the library: found before it starts, and hashed for its key.

Names, sizes and times can be as before where the bytes are not, so contents are hashed. A folder is
read once: its hash is kept beside the facts that the file system alone can write (ctime, inode).
"""

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prehab_lib.runs.certificate import write_json
from prehab_lib.tasks.glue import GLUE

# Notebooks call two data sets by shorter names, and score C4 beside every corpus but their own.
SHORT = {"wikitext2": "wikitext-2-raw-v1", "wikitext2-v1": "wikitext-2-v1"}
FACTS = ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino")
RACY = 2  # seconds: a file that is younger may change once more within one tick of its clock


def is_path(value) -> bool:
    """Text that starts like a path is one; a name such as "timm/vit" is not."""
    return isinstance(value, str) and value.startswith(("./", "../", "~", "/"))


def texts(value, name: str = "") -> Iterator[tuple[str, str]]:
    """(parameter, text) of every text among parameters, also inside lists and dictionaries."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            yield from texts(inside, name or key)
    elif isinstance(value, list):
        for inside in value:
            yield from texts(inside, name)


def paths(params: Mapping) -> list[tuple[str, str]]:
    """(parameter, path) of every path among parameters."""
    return [(name, text) for name, text in texts(params) if is_path(text)]


def data_sets() -> list[str]:
    """The names in `tasks.data.DATASETS`, which would take seconds to import."""
    from prehab_lib.tasks import rules  # imports pydantic

    plain, glue = rules.table_keys("tasks.data", "DATASETS"), [f"glue/{name}" for name in GLUE]
    return list(dict.fromkeys([*plain, *glue]))


def data_sets_of(params: Mapping) -> list[str]:
    """Data sets that the parameters name, in the order of `data_sets`."""
    said = {text for _, text in texts(params)}
    corpus = params.get("corpus", "")
    named = said | {f"glue/{text}" for text in said} | {SHORT[text] for text in said & {*SHORT}}
    if corpus in SHORT or is_path(corpus):
        named.add("c4")
    return [name for name in data_sets() if name in named]


class Contents:
    """Hashes of what folders hold, kept in `file`, if given, from one command to the next."""

    def __init__(self, file: Path | None = None):
        self.file, self.lock, self.kept = file, threading.Lock(), {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # none, or damaged
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.kept = {place: (facts, digest) for place, (facts, digest) in kept.items()}

    def lines(self, place: str) -> list[str]:
        """One for a file, or for each folder with files: its relative name and its hash.

        Hidden names are left out: no data set and no model is read from them.
        """
        with self.lock:  # runs that share data wait for one reading
            before, found = dict(self.kept), []
            if os.path.isfile(place):
                folder, name = os.path.split(place)
                found.append(self._hash(place, folder, [name]))
            for folder, names in _folders(place):
                own = os.path.relpath(folder, place)
                found.append(f"{own!r} {self._hash(folder, folder, names)}")
            if self.file and self.kept != before:
                with suppress(OSError):  # a disk that cannot be written: read again the next time
                    write_json(self.file, self.kept)
        return found

    def _hash(self, place: str, folder: str, names: list[str]) -> str:
        """Of these files of one folder and their names."""
        place, newest, facts, files = ascii(place), 0.0, [], []
        for name in names:
            with suppress(OSError):  # a link to nowhere
                found = os.stat(os.path.join(folder, name))
                if stat.S_ISREG(found.st_mode):  # reading a pipe would never end
                    files.append(name)
                    facts.append([name, *(getattr(found, fact) for fact in FACTS)])
                    newest = max(newest, found.st_ctime)
        known, whole = hashlib.sha256(repr(facts).encode()).hexdigest(), hashlib.sha256()
        if self.kept.get(place, ("", ""))[0] == known:
            return self.kept[place][1]
        for name in files:
            held = "unreadable"
            with suppress(PermissionError):  # the run cannot read it either
                held = digest(os.path.join(folder, name))
            whole.update(f"{name!r} {held}\n".encode())
        if newest < time.time() - RACY:
            self.kept[place] = known, whole.hexdigest()
        return whole.hexdigest()


def _folders(place: str) -> Iterator[tuple[str, list[str]]]:
    """Each folder below a place that has files, with their names."""
    seen = set()
    for folder, inside, names in os.walk(place, followlinks=True):
        facts = os.stat(folder)
        if (facts.st_dev, facts.st_ino) in seen:  # a link that leads back
            inside.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        if shown:
            yield folder, shown


def digest(file: str | os.PathLike) -> str:
    """SHA-256 of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
