"""The key of a run: a hash of everything that decides its numbers, so equal keys share a result.

Code cells (not outputs, not prose), resolved parameters, the library's modules that the notebook
imports, directly or through one another, and the files it reads.
"""

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from prehab_lib.runs.inputs import Contents, data_sets, data_sets_of, packaged, paths
from prehab_lib.runs.plan import Run
from prehab_lib.tasks import parameters

LIBRARY = Path(__file__).resolve().parents[1]
HANDED_ON = re.compile(r"data_root\s*=\s*P\.data_root")
DATA = (".json", ".yaml", ".md")  # of the library, read by the modules that name them


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


def _inputs(run: Run, code: str, contents: Contents) -> list[str]:
    """One line for every file or folder that a run may read from outside the library.

    Code that only hands its data_root on to `tasks.data` reads data sets that are named there or
    in the parameters; other code may read all that lies there.
    """
    places = {path: path for name, path in paths(run.params) if name != "data_root"}
    places |= packaged(run.params)
    if root := run.params.get("data_root") or os.environ.get("PREHAB_DATA"):
        rest = HANDED_ON.sub("", code)
        unknown = "data_root" in run.params and rest == code
        named = [name for name in data_sets() if f'"{name}"' in code or f"'{name}'" in code]
        named += data_sets_of(run.params)
        if unknown or re.search("data_root|PREHAB_DATA", rest):
            named = [""]
        places |= {f"data {name}": os.path.join(os.path.expanduser(root), name) for name in named}
    return [f"{name} {contents.of(place)}" for name, place in sorted(places.items())]


def key(run: Run, results: Mapping[str, bytes], library: Path = LIBRARY, contents=None) -> str:
    """Sixteen hexadecimal digits. results: what `Store.results` gives, for a run that reads it.

    contents: what is known of the files that it reads (`Contents`); without, they are all read.
    """
    cells = parameters.content(run.notebook)["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    code = ["".join(cell["source"]) for cell in cells]
    tags = [cell.get("metadata", {}).get("tags", []) for cell in cells]
    own = [text for text, some in zip(code, tags, strict=True) if "parameters" not in some]
    parts = [f"{run.profile} {run.notebook.stem}", json.dumps(run.params, sort_keys=True), *code]
    parts += _inputs(run, "\n".join(own), contents or Contents())
    for file in library_files(code, library):
        parts += [str(file.relative_to(library)), file.read_bytes()]
    for name in sorted(results):
        parts += [name, results[name]]
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()[:16]
