"""A repository to build the book of: this one's notebooks, README and figures, with runs of its own."""

import json
import shutil
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ABOUT = {"profile": "laptop", "device": "cpu", "device_name": "Some Processor", "threads": 1, "commit": COMMIT}
RUN = {
    "profile": "laptop",
    "seconds": 422.0,
    "peak_memory_mb": 2048,
    "threads": 1,
    "started": "2026-11-22T02:53:53+00:00",
}


def repository(folder: Path) -> Path:
    """A repository whose files are this one's, without its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("notebooks", "figures", "params", "site", "README.md", "pyproject.toml"):
        (folder / name).symlink_to(HERE / name)
    return folder


def small(folder: Path, *cells: dict, readme: str = "# A book\n\nIts promise.\n") -> Path:
    """A repository of one small notebook, 03_vit."""
    import nbformat

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site").symlink_to(HERE / "site")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.from_dict(cell) for cell in cells or [text("# 03 · A chapter")]]
    )
    nbformat.write(notebook, folder / "notebooks" / "03_vit.ipynb")
    return folder


def text(source: str) -> dict:
    return {"cell_type": "markdown", "id": f"text-{abs(hash(source)) % 10**8}", "metadata": {}, "source": source}


def code(source: str, *outputs: dict, tags: list[str] | None = None) -> dict:
    metadata = {"tags": tags} if tags else {}
    made = {"cell_type": "code", "id": f"code-{abs(hash(source)) % 10**8}", "metadata": metadata, "source": source}
    return made | {"execution_count": 1, "outputs": list(outputs)}


def shown(**data: str) -> dict:
    """An output. shown(png=..., html=...)."""
    kinds = {
        "png": "image/png",
        "html": "text/html",
        "plain": "text/plain",
        "widget": "application/vnd.jupyter.widget-view+json",
    }
    return {"output_type": "display_data", "metadata": {}, "data": {kinds[kind]: value for kind, value in data.items()}}


def publish(root: Path, name: str, **run) -> Path:
    """A finished run of a notebook of the laptop profile, with the notebook's stored outputs as what it executed."""
    notebook = name.partition(".")[0]
    folder = root / "runs" / "laptop" / name
    folder.mkdir(parents=True)
    shutil.copy(root / "notebooks" / f"{notebook}.ipynb", folder)
    (folder / "run.json").write_text(json.dumps(RUN | {"notebook": notebook, "files": [f"{notebook}.ipynb"]} | run))
    (folder / "result.json").write_text(json.dumps({"about": ABOUT, "protocol": "on held-out pairs", "records": []}))
    return folder
