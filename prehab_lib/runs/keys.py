"""The key of a run: a hash of everything that decides its numbers, so equal keys share a result.

Code cells (not outputs, not prose), resolved parameters, the library's modules that the notebook
imports, directly or through one another, and the files it reads.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from prehab_lib.runs.plan import Run, is_path

LIBRARY = Path(__file__).resolve().parents[1]
SMALL = 50 * 2**20  # bytes; larger files are told apart by name, size and time
DATA = (".json", ".yaml")  # of the library, read by the modules that name them
# root/set/config/file, and the hub's data/ below it. Elsewhere lie folders of a million images.
PLACES = ("*", "*/*", "*/*/*", "*/*/data/*")


@cache
def _imports(source: str, package: tuple[str, ...] = ()) -> frozenset[str]:
    """Dotted names below prehab_lib that a source may import; package: where it stands itself."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        base = []
        if isinstance(node, ast.ImportFrom):
            here = ["prehab_lib", *package]
            base = here[: len(here) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {".".join([*base, alias.name]) for alias in node.names}
    below = [name.split(".")[1:] for name in names if name.split(".")[0] == "prehab_lib"]
    # "tasks.images" counts with all that leads to it, "tasks" and "".
    return frozenset(".".join(parts[:end]) for parts in below for end in range(len(parts) + 1))


def library_files(sources: Iterable[str], library: Path = LIBRARY) -> list[Path]:
    """The library's files that sources import, and data these name; all where one is no Python."""
    pending, texts = set(), {}
    for source in sources:
        lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        try:
            pending |= _imports("\n".join(lines))
        except SyntaxError:
            files = [file.relative_to(library) for file in library.rglob("*.py")]
            pending |= {".".join(file.with_suffix("").parts) for file in files}
    while pending:
        base = library.joinpath(*filter(None, pending.pop().split(".")))
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file() and file not in texts:
                texts[file] = file.read_text(encoding="utf-8")
                pending |= _imports(texts[file], file.relative_to(library).parts[:-1])
    data = [file for file in library.rglob("*") if file.suffix in DATA]
    named = [file for file in data if any(f'"{file.name}"' in text for text in texts.values())]
    return sorted([*texts, *named])


def _inputs(params: Mapping) -> list[str]:
    """One line for every file a run reads from outside the library."""
    root = params.get("data_root")
    if root == "":
        root = os.environ.get("PREHAB_DATA")
    lines, files = [], set()
    if root:
        root = Path(root).expanduser()
        files = {file for place in PLACES for file in root.glob(f"{place}.parquet")}
    stamped = [(file, root) for file in sorted(files)]  # and the folder of its relative name
    for name, value in params.items():
        if not is_path(value) or name == "data_root":
            continue
        path = Path(value)
        if path.is_file() and path.stat().st_size < SMALL:
            lines.append(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
        else:
            below = [path, *sorted(path.rglob("*"))]
            stamped += [(file, path.parent) for file in below if file.is_file()]
    for file, folder in stamped:
        facts = file.stat()
        lines.append(f"{file.relative_to(folder)} {facts.st_size} {facts.st_mtime_ns}")
    return lines


def key(run: Run, results: Mapping[str, bytes], library: Path = LIBRARY) -> str:
    """Sixteen hexadecimal digits. results: what `Store.results` gives, for a run that reads it."""
    cells = json.loads(run.notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    parts = [f"{run.profile} {run.notebook.stem}", json.dumps(run.params, sort_keys=True), *code]
    parts += _inputs(run.params)
    for file in library_files(code, library):
        parts += [str(file.relative_to(library)), file.read_bytes()]
    for name in sorted(results):
        parts += [name, results[name]]
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]
