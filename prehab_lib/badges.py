"""Every notebook's way into Colab and Binder: a line of links under its title, and a cell that fetches the library.

The repository's address stands in pyproject.toml, `[tool.prehab] repository`; `python -m prehab_lib badges` writes it
into the notebooks.  Until it is known a placeholder stands there: the links lead nowhere, and the cell says so.
"""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import quote

PLACEHOLDER = "OWNER/REPOSITORY"
BRANCH = "main"
ADDRESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")
GITHUB = re.compile(r"(?:https?://(?:[^@/]+@)?|ssh://git@|git@)github\.com[:/]([^/\s]+/[^/\s]+?)(?:\.git)?/?")
TAG = "install"  # of the cell; keys.code_cells leaves it out, for it decides no number
START = "[Open in Colab]("

INSTALL = """\
# Where prehab_lib is missing, as in Colab, this fetches and installs it (minutes). Elsewhere it does nothing.
import importlib.util
import sys
from pathlib import Path

repository = "{repository}"
if importlib.util.find_spec("prehab_lib") is None:
    clone = next((place for place in ("..", "../..", "prehab") if Path(place, "prehab_lib").is_dir()), None)
    if clone is None and repository == "{placeholder}":
        raise ModuleNotFoundError("prehab_lib is missing: open this notebook from a clone, after `make setup` in it")
    if clone is None:
        clone = "prehab"
        !git clone --quiet --depth 1 https://github.com/{{repository}} {{clone}}
    %pip install --quiet --editable "{{clone}}[vision,text,rehab]"
    sys.path.insert(0, str(Path(clone).resolve()))"""


def add_to(commands) -> None:
    """The subcommand's arguments."""
    command = commands.add_parser(
        "badges", help="write the repository's address into the notebooks' links to Colab and Binder"
    )
    command.add_argument(
        "--repository", metavar="OWNER/NAME", help="on github.com (default: the address of git's origin)"
    )
    command.set_defaults(act=_run)


def _run(arguments) -> int:
    from prehab_lib.plan import home

    root = home()
    repository = arguments.repository or origin(root) or setting(root)
    changed = write(root, repository)
    print(f"{repository}: {len(changed)} files changed" + "".join(f"\n  {file.relative_to(root)}" for file in changed))
    return 0


def setting(root: Path) -> str:
    """The repository's address in pyproject.toml, the placeholder where none stands there."""
    told = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return told.get("tool", {}).get("prehab", {}).get("repository", PLACEHOLDER)


def origin(root: Path) -> str | None:
    """owner/name of git's remote "origin" where it is on github.com, else None."""
    try:
        told = subprocess.run(["git", "-C", str(root), "remote", "get-url", "origin"], capture_output=True, text=True)
    except OSError:  # no git
        return None
    found = GITHUB.fullmatch(told.stdout.strip())
    return found.group(1) if found else None


def links(repository: str, path: str) -> str:
    """The line under a title.  path: of the notebook, from the repository's root."""
    colab = f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{path}"
    binder = f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?labpath={quote(path, safe='')}"
    return f"{START}{colab}) · [Open in Binder]({binder})"


def install(repository: str) -> str:
    """The source of the install cell."""
    return INSTALL.format(repository=repository, placeholder=PLACEHOLDER)


def notebooks(root: Path) -> list[Path]:
    """Those that carry badges: lessons and solutions."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")) + sorted(
        (root / "notebooks/solutions").glob("*.ipynb")
    )


def stamped(content: dict, path: str, repository: str) -> dict:
    """A notebook's content with its badge line and install cell, put there or brought up to date; the rest as it was.

    Raises ValueError where the first cell is no title.
    """
    title, *others = content["cells"]
    lines = "".join(title["source"]).splitlines()
    if title["cell_type"] != "markdown" or not lines or not lines[0].startswith("# "):
        raise ValueError(f"{path}: the first cell must begin with a title, `# ...`")
    body = "\n".join(line for line in lines[1:] if not line.startswith(START)).strip("\n")
    text = f"{lines[0]}\n\n{links(repository, path)}\n\n{body}"
    cell = {"cell_type": "code", "execution_count": 1, "id": TAG, "metadata": {"tags": [TAG]}, "outputs": []}
    cell["source"] = install(repository).splitlines(keepends=True)
    others = [other for other in others if TAG not in other["metadata"].get("tags", [])]
    return content | {"cells": [title | {"source": text.splitlines(keepends=True)}, cell, *_counted(others)]}


def _counted(cells: list[dict]) -> list[dict]:
    """The cells after the install cell: code runs from 2 on, as one run of all of them counts."""
    counted, number = [], 1
    for cell in cells:
        if cell["cell_type"] == "code":
            number += 1
            outputs = [
                output | ({"execution_count": number} if "execution_count" in output else {})
                for output in cell["outputs"]
            ]
            cell = cell | {"execution_count": number, "outputs": outputs}
        counted.append(cell)
    return counted


def write(root: Path, repository: str) -> list[Path]:
    """Write the address into pyproject.toml and all notebooks; the files that changed.

    Raises ValueError for an address that is not owner/name.
    """
    if not ADDRESS.fullmatch(repository):
        raise ValueError(f"{repository!r} is no repository: write owner/name, as on github.com")
    project = root / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    new = {project: re.sub(r'(?m)(^\[tool\.prehab\]\nrepository = )"[^"\n]*"', rf'\1"{repository}"', text)}
    for file in notebooks(root):
        content = json.loads(file.read_text(encoding="utf-8"))
        content = stamped(content, file.relative_to(root).as_posix(), repository)
        new[file] = json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    changed = [file for file, content in new.items() if file.read_text(encoding="utf-8") != content]
    for file in changed:
        file.write_text(new[file], encoding="utf-8")
    return changed
