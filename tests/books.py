"""A repository to build the book of: this one's notebooks and figures, or a single small notebook, with runs of its own."""

import json
import shutil
from pathlib import Path

import nbformat

from tests.beside import ROOT, load

site = load("site/build.py")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ABOUT = {"profile": "laptop", "device": "cpu", "device_name": "Some Processor", "threads": 1, "commit": COMMIT}
RUN = {"profile": "laptop", "seconds": 422.0, "peak_memory_mb": 2048, "started": "2026-11-22T02:53:53+00:00"}


def repository(folder: Path) -> Path:
    """A repository whose files are this one's, without its runs."""
    for name in ("notebooks", "figures", "params", "site", "docs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def small(folder: Path, *cells: dict) -> Path:
    """A repository of one small notebook, 03_vit, with a figure and a page of documentation."""
    (folder / "site").symlink_to(ROOT / "site")
    (folder / "notebooks").mkdir()
    written = [nbformat.from_dict(cell) for cell in cells or [text("# 03 · A chapter")]]
    nbformat.write(nbformat.v4.new_notebook(cells=written), folder / "notebooks" / "03_vit.ipynb")
    figures = folder / "figures" / "laptop"
    figures.mkdir(parents=True)
    shutil.copy(ROOT / "figures" / "laptop" / "idea.png", figures / "walks.png")
    (figures / "walks.csv").write_text("x\n1\n")
    record = {"caption": "Two walks", "alt": "Two lines that cross.", "seeds": [0, 1]}
    (figures / "walks.json").write_text(json.dumps(record | {"about": {"notebook": "03_vit", "commit": COMMIT}}))
    (folder / "docs").mkdir()
    links = "[a chapter](../notebooks/03_vit.ipynb), [a licence](../LICENSE), [web](https://example.org)."
    page = f"# Reproduce\n\n{links}\n\n```sh\nsee [this](LICENSE)\n```\n"
    (folder / "docs" / "reproduce.md").write_text(page, encoding="utf-8")
    return folder


def text(source: str) -> dict:
    return nbformat.v4.new_markdown_cell(source)


def code(source: str, *data: dict, tags: tuple = ()) -> dict:
    """A cell of code. data: of what it displays, in order."""
    outputs = [nbformat.v4.new_output("display_data", data=one) for one in data]
    return nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=1, metadata={"tags": list(tags)})


def publish(root: Path, name: str, **run) -> Path:
    """A finished run of the laptop profile, with the notebook's stored outputs as what it executed; its notebook's file."""
    notebook = name.partition(".")[0]
    folder = root / "runs" / "laptop" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(RUN | run))
    (folder / "result.json").write_text(json.dumps({"about": ABOUT, "records": []}))
    return Path(shutil.copy(root / "notebooks" / f"{notebook}.ipynb", folder))
