"""What a build of the course wrote, so the next one does not delete what somebody put there or
changed since.
"""

import hashlib
import json
from pathlib import Path

RECORD = "written.json"
PASSING = {".ipynb_checkpoints", "__pycache__"}  # programs leave these behind


def record(folder: Path) -> None:
    """Keep the digest of every file below."""
    found = {name: _digest(file) for name, file in _files(folder).items()}
    (folder / RECORD).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def refuse_to_lose(folder: Path) -> None:
    """Raises ValueError where the folder holds a file that no build wrote, or that was changed
    since.
    """
    try:
        known = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    for name, file in _files(folder).items():
        if name not in known or known[name] != _digest(file):
            what = "has been changed since" if name in known else "is not from"
            raise ValueError(
                f"{folder.parent.name}/{folder.name}/{name} {what} make course, which writes this folder anew: "
                "move what you want to keep elsewhere, delete the folder, and make course again"
            )


def _files(folder: Path) -> dict[str, Path]:
    """Relative name -> file, in order; links are files of their own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    named = {path.relative_to(folder): path for path in paths}
    return {
        name.as_posix(): path
        for name, path in named.items()
        if not PASSING.intersection(name.parts) and name.as_posix() != RECORD
    }


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
