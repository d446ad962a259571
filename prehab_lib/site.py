"""`python -m prehab_lib site PROFILE`: the executed notebooks as a static book, site/_build/html.

Pages are gathered below site/_build/source (site_pages, site_front), which has the repository's own
layout, so that links between notebooks hold; Sphinx makes HTML of them. The result asks nothing of
any other machine and opens from a disk.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from prehab_lib import site_alt, site_front, site_pages
from prehab_lib.runs import plan

NEEDED = (
    "sphinx",
    "myst_nb",
    "pydata_sphinx_theme",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
)
REPRODUCE = "# Reproduce it, use it, teach with it"
SOLUTIONS = """# Solutions

Executed; each solution is behind a click. The hints of a wrong answer teach more than the right one: try first."""


def add_to(commands) -> None:
    """The subcommand's arguments."""
    command = commands.add_parser(
        "site", help="the executed notebooks of a profile as a book: site/_build/html"
    )
    command.add_argument("profile", nargs="?", default="laptop")
    command.add_argument(
        "--out", metavar="FOLDER", help="where the book and its sources go (site/_build)"
    )
    command.set_defaults(act=run)


def run(arguments) -> int:
    root = plan.home()
    out = Path(arguments.out).absolute() if arguments.out else root / "site" / "_build"
    book = build(arguments.profile, root, out)
    size = sum(file.stat().st_size for file in book.rglob("*") if file.is_file())
    print(
        f"written: {os.path.relpath(book / 'index.html')} ({size / 1e6:.0f} MB); open it in a browser, no server is needed"
    )
    return 0


def build(profile: str, root: Path, out: Path) -> Path:
    """Build the book of a profile in OUT/html, and return that folder. A book that was there stays
    when this fails.

    Raises ValueError for an unknown profile and for what Sphinx refuses, FileNotFoundError where
    the packages of the extra `site` are missing.
    """
    plan.check_profile(root, profile)
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise FileNotFoundError(
            f"the book needs {', '.join(absent)}: pip install -e '.[site]', or make site"
        )
    sources, new = out / "source", out / "html.new"
    for folder in (sources, new):
        shutil.rmtree(folder, ignore_errors=True)
    gather(profile, root, sources)
    _sphinx(root, sources, new, profile)
    book = out / "html"
    for folder in (book, out / "doctrees", out / "jupyter_execute"):
        shutil.rmtree(folder, ignore_errors=True)
    os.rename(new, book)
    return book


def gather(profile: str, root: Path, sources: Path) -> None:
    """Write every page of the book below `sources`, as Markdown and notebooks."""
    pages, solved = (
        site_pages.chapters(root, profile, plan.notebooks(root)),
        site_pages.solutions(root),
    )
    places, drawn = {page.place for page in [*pages, *solved]}, _figures(root, profile)
    alternatives = alternatives_of(pages)
    readme = (root / "README.md").read_text(encoding="utf-8")
    told = {
        name: site_front.relinked(text, profile, places, drawn, _repository(root))
        for name, text in site_front.sections(readme).items()
    }
    index = (root / "site" / "index.md").read_text(encoding="utf-8")
    for name, text in {
        "title": site_front.title(readme),
        "promise": told.pop(""),
        "verdicts": _verdicts(root, profile),
        "profile": profile,
        "chapters": site_front.chapters(pages, site_front.told_of(readme)),
        "contents": _contents(pages),
    }.items():
        index = index.replace(f"<!-- {name} -->", text)
    for page in [*pages, *solved]:
        site_pages.write(page, sources)
    _write(sources / "index.md", index)
    _write(
        sources / "figures.md", site_front.figures(drawn, sources, profile, alternatives, places)
    )
    _write(
        sources / "reproduce.md",
        REPRODUCE,
        *(f"## {name}\n\n{text}" for name, text in told.items()),
    )
    listed = "\n".join(f"* [{page.title}](/{page.place})" for page in solved)
    _write(
        sources / "solutions.md",
        SOLUTIONS,
        listed,
        site_front.contents("", [page.place for page in solved]),
    )
    _copy_pictures(readme, root, sources)


def alternatives_of(pages) -> dict[str, str]:
    """Name of a saved figure -> its alternative text where no table stands below, over all pages."""
    found = {}
    for page in pages:
        for cell in page.notebook.cells:
            if alt := cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
                found.setdefault(
                    site_alt.saved_as(cell.source), alt.partition(f" {site_alt.BELOW}")[0]
                )
    return found


def _figures(root: Path, profile: str) -> Path:
    own = root / "runs" / profile / "figures"
    return own if own.is_dir() else root / "figures" / profile


def _verdicts(root: Path, profile: str) -> str:
    for home in (root / "runs" / profile / "figures", root / "figures" / profile):
        if (home / "verdicts.csv").is_file():
            import pandas

            return site_front.raw(
                site_front.verdict_table(
                    pandas.read_csv(home / "verdicts.csv", keep_default_na=False)
                )
            )
    return f"No verdicts of the {profile} profile are stored yet: `python -m prehab_lib run {profile}` writes them."


def _contents(pages) -> str:
    groups = {
        "Chapters": [page.place for page in pages if not page.of],
        "Beside them": ["figures", "solutions", "reproduce"],
    }
    return "\n\n".join(site_front.contents(caption, places) for caption, places in groups.items())


def _write(file: Path, *pieces: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(pieces) + "\n", encoding="utf-8")


def _copy_pictures(readme: str, root: Path, sources: Path) -> None:
    """The README's own pictures, which its text shows on the front page."""
    from prehab_lib.runs.store import copy

    for picture, _, target in site_front.LINK.findall(readme):
        if picture and "://" not in target and (root / target).is_file():
            copy(root / target, sources / target)


def _repository(root: Path) -> str:
    """owner/name on the host, as pyproject.toml says; empty where it does not."""
    return ""


def _sphinx(root: Path, sources: Path, html: Path, profile: str) -> None:
    """Sphinx with warnings as errors. Raises ValueError with its first warnings."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-j",
        "auto",
    ]
    command += [
        "-c",
        str(root / "site"),
        "-d",
        str(html.parent / "doctrees"),
        "-E",
        "-A",
        f"profile={profile}",
    ]
    done = subprocess.run([*command, str(sources), str(html)], capture_output=True, text=True)
    if done.returncode:
        said = [
            line.replace(f"{sources}{os.sep}", "")
            for line in done.stderr.splitlines()
            if line.strip()
        ]
        warned = [line for line in said if "WARNING" in line or "rror" in line] or said
        raise ValueError(
            f"the book was not built, Sphinx says: {' | '.join(warned[:3]) or done.returncode}"
        )
