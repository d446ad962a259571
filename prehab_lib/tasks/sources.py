"""The standard library's source files, and what they document: read with `ast`, never imported, and
kept in the cache.
"""

import ast
import gc
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prehab_lib.tasks.remember import remembered

SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "encodings",
    "pydoc_data",
    "site-packages",
}


class Entry(NamedTuple):
    """One docstring.  module: top-level name.  name: dotted.  arguments: as written, of a function
    or method; else None, also for a function inside another.
    """

    module: str
    name: str
    text: str
    arguments: str | None


def library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def files() -> list[tuple[Path, tuple[str, ...]]]:
    """(file, its dotted name's parts), by top-level module, `SKIPPED` ones left out."""
    names, home = sorted(sys.stdlib_module_names - SKIPPED), library()
    found = [
        file
        for name in names
        for file in (home / f"{name}.py", *sorted((home / name).rglob("*.py")))
    ]
    parts = [(file, file.relative_to(home).with_suffix("").parts) for file in found]
    return [
        (file, name) for file, name in parts if file.is_file() and not SKIPPED.intersection(name)
    ]


def read_once(
    name: str, read: Callable[[Path, tuple[str, ...]], Iterable], wanted: Callable[[str], bool]
) -> list:
    """What `read(file, parts)` finds in every file whose top-level module is wanted, kept until a
    file or the code changes.
    """
    chosen = [(file, parts) for file, parts in files() if wanted(parts[0])]
    seen = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file, _ in chosen]
    key = [sys.version, seen, inspect.getsource(inspect.getmodule(read))]

    def read_all() -> list:
        with (
            _no_collection()
        ):  # syntax trees are millions of objects, and each sweep would look at torch's again
            return [found for file, parts in chosen for found in read(file, parts)]

    return remembered(name, key, read_all)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's search for unreachable cycles rests, if it was on; what no cycle holds is freed at
    once as ever.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@cache
def entries() -> tuple[Entry, ...]:
    """Every docstring of the standard library, in the order of the files; none where this Python
    has no sources.
    """
    return tuple(
        Entry(*entry) for entry in read_once("docstrings", _entries_in, lambda module: True)
    )


def _entries_in(file: Path, parts: tuple[str, ...]) -> list[Entry]:
    return _documented(ast.parse(file.read_bytes()), parts, inside=False)


def _documented(node: ast.AST, name: tuple[str, ...], inside: bool) -> list[Entry]:
    """inside: whether a function is around the node."""
    text, function = (
        ast.get_docstring(node),
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef),
    )
    arguments = ast.unparse(node.args) if text and function and not inside else None
    found = [Entry(name[0], ".".join(name), text, arguments)] if text else []
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found += _documented(child, (*name, child.name), inside or function)
    return found
