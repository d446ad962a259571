"""`python site/build.py PROFILE` (make site): the executed notebooks as a static book, site/_build/html.

Pages are gathered below site/_build/source, which has the repository's own layout, so that links between them hold; Sphinx
makes HTML of them, a warning being an error. The book asks nothing of any other machine and opens from a disk.
"""

import argparse
import ast
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("sphinx", "myst_nb", "pydata_sphinx_theme", "sphinx_copybutton", "sphinx-mathjax-offline")
MARK = ".book"  # in a folder whose content a build may replace
REMEDY = "remove its run's folder, or restore the file"
ALT = re.compile(r'\balt \+?= ("(?:[^"\\]|\\.)*")')
PLAYS = "widgets.play("
MOVES = "*In JupyterLab (`make jupyter`) this figure has sliders.*"
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def build(profile: str, out: Path, root: Path = ROOT) -> None:
    """Build the book of a profile in OUT/html. The one that was there stays where this fails.

    Raises ValueError for an unknown profile, for a notebook that is none, and where Sphinx refuses; FileNotFoundError where the
    packages of the extra `site` are missing.
    """
    profiles = {"smoke"} | {path.name for folder in ("runs", "figures") for path in (root / folder).glob("[a-z]*/")}
    profiles |= {file.suffixes[-2][1:] for file in (root / "params").glob("*.*.yaml")}
    if profile not in profiles:
        raise ValueError(f"unknown profile {json.dumps(profile)}: choose among {', '.join(sorted(profiles))}")
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise FileNotFoundError(f"the book needs {', '.join(absent)}: pip install -e '.[site]', or make site")
    if out.exists() and out != root / "site" / "_build" and not (out / MARK).is_file() and [*out.glob("*")]:
        raise ValueError(f"--out {out} holds other files than a book: name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    sources, draft = out / "source", out / "html.new"
    for folder in (sources, draft):
        shutil.rmtree(folder, ignore_errors=True)
    gather(profile, sources, root)
    command = ["-W", "--keep-going", "-q", "-E", "-b", "html", "-j", "auto", "-A", f"profile={profile}"]
    command += ["-c", str(root / "site"), "-d", str(out / "doctrees"), str(sources), str(draft)]
    if subprocess.run([sys.executable, "-m", "sphinx", *command]).returncode:
        raise ValueError("the book was not built: Sphinx says why above")
    for folder in ("html", "doctrees", "jupyter_execute"):
        shutil.rmtree(out / folder, ignore_errors=True)
    draft.rename(out / "html")


def gather(profile: str, sources: Path, root: Path = ROOT) -> None:
    """Write every page of the book below `sources`, as Markdown and notebooks."""
    for file in sorted((root / "notebooks").glob("[0-9][0-9]*_*.ipynb")):
        for place, notebook in chapter(file, root / "runs" / profile, profile).items():
            _write(sources / "notebooks" / place, nbformat.writes(notebook))
    for file in sorted((root / "notebooks" / "solutions").glob("[0-9][0-9]*_*.ipynb")):
        note = f"Try first: the exercises stand at the end of [the chapter](/notebooks/{file.name})."
        solved = prepared(_read(file), note, folded=lambda source: "def " in source, prompt="the solution")
        _write(sources / "notebooks" / "solutions" / file.name, nbformat.writes(solved))
    homes = [root / "runs" / profile / "figures", root / "figures" / profile]
    _figures(next((home for home in homes if any(home.rglob("*.png"))), homes[-1]), profile, sources)
    verdicts = next((home / "verdicts.md" for home in homes if (home / "verdicts.md").is_file()), None)
    none = f"# Verdicts\n\nNone of the {profile} profile are stored: `python -m prehab_lib verdicts {profile}` writes them."
    _write(sources / "verdicts.md", _text(verdicts) if verdicts else none)
    pages = {"index.md": root / "site" / "index.md"}
    pages |= {f"docs/{file.name}": file for file in (root / "docs").glob("*.md")}
    for place, file in pages.items():
        _write(sources / place, _text(file))
    for glob in ("notebooks/solutions/*", "docs/*"):
        if not any(sources.glob(glob)):  # Sphinx would warn of it
            index = (sources / "index.md").read_text(encoding="utf-8")
            _write(sources / "index.md", index.replace(f"{glob}\n", ""))
    for place in [*pages, "verdicts.md"]:
        _relink(sources / place, sources)


def chapter(file: Path, runs: Path, profile: str) -> dict[str, nbformat.NotebookNode]:
    """File name -> page: the notebook's runs in the profile, a grid's one by one, else its stored outputs.

    The first run of a grid is the chapter, the others are pages of their own.
    """
    stored, solutions = _read(file), file.parent / "solutions" / file.name
    note = (
        f"The exercises at its end have [solutions](/notebooks/solutions/{file.name})." if solutions.is_file() else ""
    )
    pages = {}
    for folder in sorted(runs.glob(f"{file.stem}*")):
        run = _json(folder / "run.json")
        of = run.get("notebook", folder.name.partition(".")[0])
        if not run or run.get("error") or of != file.stem:
            continue
        notebook = _read(folder / file.name)
        facts = header(profile, run, _json(folder / "result.json").get("about") or {}, folder.name.partition(".")[2])
        if _code(notebook) != _code(stored):
            facts["note"] = "the notebook has changed since this run"
        place = f"{folder.name}.ipynb" if pages else file.name
        pages[place] = prepared(notebook, note, facts)
        if len(pages) > 1:
            label = folder.name.partition(".")[2] or folder.name
            pages[place].cells[0].source = re.sub("# .+", rf"\g<0>: {label}", pages[place].cells[0].source, count=1)
            pages[place].metadata["nosearch"] = True  # the chapter is found by search, its further runs from there
    if not pages:
        defaults = f"the notebook's own defaults, as it is stored; there is no run of the {profile} profile here"
        pages[file.name] = prepared(stored, note, {"profile": defaults, "minutes": "about 1, on one CPU core"})
    return pages


def header(profile: str, run: dict, about: dict, label: str) -> dict[str, str]:
    """What stands under the title of a page that shows a run: name -> value."""
    facts = {"profile": profile} | ({"run": label} if label else {})
    facts["minutes"] = f"{run['seconds'] / 60:.1f}" if (run.get("seconds") or 0) >= 3 else "less than 0.1"
    if run.get("peak_memory_mb"):
        facts["minutes"] += f", {run['peak_memory_mb'] / 1024:.1f} GB of memory"
    threads = about.get("threads", run.get("threads"))
    facts["machine"] = f"{about.get('device_name', 'not recorded')}, threads: {threads}"
    if about.get("device", "cpu") != "cpu":
        facts["machine"] += f", {about['device']}"
    commit, changed = str(about.get("commit") or "not recorded").partition("+")[::2]
    facts["commit"] = (commit[:10] if re.fullmatch("[0-9a-f]{40}", commit) else commit) + (
        " + changes" if changed else ""
    )
    facts["date"] = str(run.get("started", ""))[:10]
    return facts


def prepared(notebook, note: str, facts: dict[str, str] | None = None, folded=None, prompt: str = "how it is drawn"):
    """The notebook as the book shows it: facts under its title, figures described, folded code behind a click.

    folded(source) says of which cells; without it, of those that only draw. Raises ValueError where there is no title.
    """
    folded = folded or (lambda source: "plots.save(" in source or PLAYS in source)
    first = notebook.cells[0] if notebook.cells else None
    if first is None or not re.match(r"\s*# .", first.source):
        raise ValueError("a notebook of the book starts with a Markdown cell whose first line is its title, `# ...`")
    title, _, rest = first.source.lstrip().partition("\n")
    first.source = "\n\n".join(part for part in (title, _facts(facts), note, rest.strip()) if part)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    before, cells = "", []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            before = cell.source
        if cell.cell_type != "code":
            continue
        display = {}
        # A notebook shows a cell's value and then draws its figures: here the table stands under the figure.
        cell.outputs.sort(key=lambda output: output.output_type == "execute_result")
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            display["image"] = {"alt": alternative(cell.source, before)}
        if folded(cell.source):
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
            display |= {"code_prompt_show": f"Show {prompt}", "code_prompt_hide": f"Hide {prompt}"}
        if display:
            cell.metadata["mystnb"] = display
        if PLAYS in cell.source:
            cells.append(nbformat.v4.new_markdown_cell(MOVES, id=f"{cell.id[:50]}-moves"))
    notebook.cells = cells
    return notebook


def alternative(source: str, before: str) -> str:
    """What a figure shows: as it is given where it is saved, else the cell's first comment, else the paragraph before."""
    given = ALT.findall(source)
    if given:
        return "".join(map(ast.literal_eval, given))
    if source.startswith("#"):
        return source.partition("\n")[0].lstrip("# ")
    paragraph = before.strip().split("\n\n")[-1]
    paragraph = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
    return "Picture to: " + re.sub(r"\s+", " ", re.sub(r"[*`$\\#>]", "", paragraph)).strip()


def _figures(folder: Path, profile: str, sources: Path) -> None:
    """The page of figures, each as large as it was saved, with who made it and its numbers."""
    lines = [f"# Figures of the {profile} profile", "Each as it was saved by its run, with the numbers that are drawn."]
    saved = [(_json(file.with_suffix(".json")), file) for file in folder.rglob("*.png")]
    for record, file in sorted(saved, key=lambda pair: (_maker(pair[0]), pair[1])):
        name, maker = file.relative_to(folder).with_suffix("").as_posix(), _maker(record)
        target = sources / "figures" / profile / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        caption = record.get("caption") or file.stem
        if "/" in name:  # a run of a grid
            caption += f" ({name.partition('/')[0].removeprefix(f'{maker}.')})"
        has_page = (sources / "notebooks" / f"{maker}.ipynb").is_file()
        origin = [f"[{maker}](/notebooks/{maker}.ipynb)" if has_page else maker]
        seeds = record.get("seeds", record.get("seed"))
        if seeds is not None:
            origin.append(f"seeds {str(seeds).strip('[]')}")
        commit = (record.get("about") or {}).get("commit")
        if commit:
            origin.append(f"commit {commit[:10]}")
        if file.with_suffix(".csv").is_file():
            shutil.copy(file.with_suffix(".csv"), target.with_suffix(".csv"))
            origin.append(f"{{download}}`numbers (CSV) </figures/{profile}/{name}.csv>`")
        title = re.sub(r"([$*_<`[])", r"\\\1", caption)
        width = int.from_bytes(file.read_bytes()[16:20], "big") // 2
        lines += [
            f"## {title}",
            f"```{{image}} /figures/{profile}/{name}.png\n:alt: {record.get('alt') or caption}\n:width: {width}px\n"
            ":loading: lazy\n```",
            " · ".join(part for part in origin if part),
        ]
    _write(sources / "figures.md", "\n\n".join(lines) + "\n")


def _relink(page: Path, sources: Path) -> None:
    """Leave of links only those that lead to a page of the book or to another host: of the others the words stay."""

    def link(match: re.Match) -> str:
        target = sources / match[2].lstrip("/") if match[2].startswith("/") else page.parent / match[2]
        return match[0] if "://" in match[2] or target.is_file() else match[1]

    pieces = re.split(r"(^```.*?^```$)", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    _write(page, "".join(piece if piece.startswith("```") else LINK.sub(link, piece) for piece in pieces))


def _facts(facts: dict[str, str] | None) -> str:
    rows = [f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>" for name, value in (facts or {}).items()]
    return f'```{{raw}} html\n<dl class="made">{"".join(rows)}</dl>\n```' if rows else ""


def _maker(record: dict) -> str:
    """The notebook that drew a figure."""
    return str((record.get("about") or {}).get("notebook") or "").partition(".")[0]


def _code(notebook) -> list[str]:
    """The code that a reader wrote: the runner adds a cell of its own."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def _read(file: Path):
    try:
        return nbformat.read(file, 4)
    except (OSError, ValueError, nbformat.ValidationError):
        raise ValueError(f"{file} is no notebook: {REMEDY}") from None


def _json(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        return {**json.loads(_text(file))}
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{file} is no object of JSON: {REMEDY}") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is no UTF-8 text: {REMEDY}") from None


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="The executed notebooks of a profile as a book: site/_build/html")
    parser.add_argument("profile", nargs="?", default="laptop")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where the book and its sources go (site/_build)")
    given = parser.parse_args(words)
    out = (given.out or root / "site" / "_build").absolute()
    try:
        build(given.profile, out, root)
    except (ValueError, OSError) as error:
        print(f"site: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in (out / "html").rglob("*") if file.is_file())
    print(f"written: {os.path.relpath(out / 'html' / 'index.html')} ({size / 1e6:.0f} MB); it opens without a server")
    return 0


if __name__ == "__main__":
    sys.exit(main())
