"""The key of a run: a hash of everything that decides its numbers, so that equal keys may share one
result.

Code cells (not outputs, not prose), resolved parameters, the library's modules the notebook
imports, directly or through one another, results of the runs it needs, and the files it reads.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from prehab_lib.runs.plan import Run, is_path

LIBRARY = Path(__file__).resolve().parents[1]
SMALL = 50 * 2**20  # bytes; larger files are told apart by name, size and time


def code_cells(notebook: Path) -> list[str]:
    """The source of every code cell but the one tagged `install`, which decides no number."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [
        "".join(cell["source"])
        for cell in code
        if "install" not in cell["metadata"].get("tags", [])
    ]


def _module_file(name: str, library: Path) -> Path | None:
    """File of a module given by its dotted name inside the library, None where it is not one."""
    base = library.joinpath(*name.split(".")) if name else library
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if file.is_file():
            return file
    return None


def _imports(source: str, package: str) -> set[str]:
    """Dotted names inside the library that a source may import, `package` being where it stands
    itself.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ["prehab_lib", *filter(None, package.split("."))]
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    inside = {name.partition(".")[2] for name in found if name.split(".")[0] == "prehab_lib"}
    return {
        ".".join(parts[:end])
        for parts in (name.split(".") for name in inside)
        for end in range(len(parts) + 1)
    }


@cache
def _module_imports(file: Path, library: Path) -> frozenset[str]:
    return frozenset(
        _imports(file.read_text(encoding="utf-8"), ".".join(file.relative_to(library).parts[:-1]))
    )


def library_files(sources: Iterable[str], library: Path = LIBRARY) -> list[Path]:
    """Files of the library that these sources import, directly or not; all of them where a source
    cannot be parsed.

    A data file of the library counts where one of these modules names it, or where none of the
    library's does. Nothing is imported to find out.
    """
    data = {
        file for file in library.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
    }
    plain = (
        "\n".join(line for line in source.splitlines() if line.lstrip()[:1] not in "%!")
        for source in sources
    )
    try:
        pending = set().union(*(_imports(source, "") for source in plain))
    except SyntaxError:
        return sorted({*library.rglob("*.py"), *data})
    files: set[Path] = set()
    while pending:
        file = _module_file(pending.pop(), library)
        if file is not None and file not in files:
            files.add(file)
            pending |= _module_imports(file, library)
    return sorted(files | {file for file in data if _is_read(file, files, library)})


def _is_read(data: Path, modules: set[Path], library: Path) -> bool:
    readers = {
        file
        for file in library.rglob("*.py")
        if f'"{data.name}"' in file.read_text(encoding="utf-8")
    }
    return bool(readers & modules) or not readers


def _stamp(file: Path, name: str) -> str:
    facts = file.stat()
    return f"{name} {facts.st_size} {facts.st_mtime_ns}"


def _inputs(params: dict) -> list[str]:
    """One line for every file a run reads from outside the library."""
    root = (
        params.get("data_root") or ("data_root" in params and os.environ.get("PREHAB_DATA")) or ""
    )
    lines = []
    if root:
        # root/set/config/file, and the hub's data/ below it. Elsewhere lie image folders with a
        # million files.
        places = ("*", "*/*", "*/*/*", "*/*/data/*")
        found = {file for place in places for file in Path(root).glob(f"{place}.parquet")}
        lines += [_stamp(file, str(file.relative_to(root))) for file in sorted(found)]
    for name, value in params.items():
        path = Path(value) if is_path(value) and name != "data_root" else None
        if path is None or not path.exists():
            continue
        if path.is_file() and path.stat().st_size < SMALL:
            lines.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
            continue
        files = (
            sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        )
        lines += [_stamp(file, f"{name} {file.relative_to(path.parent)}") for file in files]
    return lines


def key(run: Run, upstream: dict[str, bytes], library: Path = LIBRARY) -> str:
    """Sixteen hexadecimal digits. upstream: name -> result of each run it needs, as bytes."""
    digest = hashlib.sha256()

    def feed(content: bytes | str) -> None:
        content = content.encode() if isinstance(content, str) else content
        digest.update(len(content).to_bytes(8, "big") + content)

    cells = code_cells(run.notebook)
    feed(f"{run.profile} {run.notebook.stem}")  # a run of a grid is told apart by its parameters
    feed(json.dumps(run.params, sort_keys=True))
    for content in (*cells, *_inputs(run.params)):
        feed(content)
    for file in library_files(cells, library):
        feed(str(file.relative_to(library)))
        feed(file.read_bytes())
    for name in sorted(upstream):
        feed(name)
        feed(upstream[name])
    return digest.hexdigest()[:16]
