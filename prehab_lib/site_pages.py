"""Executed notebooks made ready for the book: where each comes from, who made it, what its figures
show.
"""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path

from prehab_lib import site_alt, site_front
from prehab_lib.report import finished
from prehab_lib.report.finished import Finished

WIDGET = "application/vnd.jupyter.widget-view+json"
# Pictures from other machines (badges): the book loads nothing from outside, so their text stands
# in for them.
REMOTE_IMAGE = re.compile(r"!\[([^\]]*)\]\(\s*https?://[^)]*\)")
REMOTE_TAG = re.compile(r"<img\b[^>]*\bsrc=[\"']https?://[^>]*>", re.IGNORECASE)
# Links to hosts that do not know the repository yet lead nowhere.
UNSEEN = {"injected-parameters"}  # cells that no reader wrote
PLAYS = "widgets.play("
MOVES = "*In JupyterLab (`make jupyter`) this figure has sliders.*"
SHOW_CODE = {"code_prompt_show": "Show how it is drawn", "code_prompt_hide": "Hide how it is drawn"}
SHOW_SOLUTION = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}


@dataclass(frozen=True)
class Page:
    """A notebook of the book. place: its file below the book's sources, as
    notebooks/04_bert_glue.ipynb.

    facts: what its header says, name -> value. links: Markdown lines under it. of: the chapter it
    is a further run of; runs: the places of a chapter's further runs.
    """

    place: str
    notebook: object  # nbformat.NotebookNode
    facts: dict[str, str]
    links: tuple[str, ...] = ()
    of: str = ""
    runs: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return title_of(self.notebook)


def title_of(notebook) -> str:
    """The first heading. Raises ValueError where the first cell has none: a page needs a name."""
    first = notebook.cells[0].source if notebook.cells else ""
    found = re.match(r"\s*# (.+)", first)
    if not found:
        raise ValueError(
            "a notebook of the book starts with a Markdown cell whose first line is its title, `# ...`"
        )
    return found.group(1).strip()


def _read(file: Path):
    import nbformat

    try:
        return nbformat.read(file, 4)
    except (json.JSONDecodeError, nbformat.reader.NotJSONError):
        raise ValueError(
            f"{file} is no notebook: remove its run's folder, or restore the file"
        ) from None


def chapters(root: Path, profile: str, sources: dict[str, Path]) -> list[Page]:
    """The pages of every notebook: its run of the profile (a grid's runs one by one), else its
    stored outputs.
    """
    runs = finished.read(root / "runs" / profile)
    pages = []
    for name, source in sources.items():
        stored = _read(source)
        found = [run for run in runs.get(name, []) if not run.run.get("error")]
        made = [_of_run(root, profile, run, stored) for run in found] or [
            (stored, stored_facts(profile))
        ]
        places = [
            f"notebooks/{name}{'' if at == 0 else '.' + run.label}.ipynb"
            for at, run in enumerate(found or [None])
        ]
        solution = root / "notebooks" / "solutions" / source.name
        links = (
            [f"The exercises at its end have [solutions](/notebooks/solutions/{name}.ipynb)."]
            if solution.is_file()
            else []
        )
        if len(found) > 1:
            others = ", ".join(
                f"[{run.label}](/{at})" for at, run in zip(places, found, strict=True)
            )
            links.append(f"The profile runs this notebook {len(found)} times: {others}.")
        for number, ((notebook, facts), place) in enumerate(zip(made, places, strict=True)):
            if number:
                _retitle(notebook, f"{title_of(notebook)}: {found[number].label}")
            captions = (
                captions_of(root / "runs" / profile / "figures", found[number]) if found else {}
            )
            ready = prepared(notebook, folded=_draws, prompts=SHOW_CODE, captions=captions)
            of, further = (
                (places[0], ()) if number else ("", tuple(f"/{one}" for one in places[1:]))
            )
            pages.append(Page(place, ready, facts, tuple(links), of, further))
    return pages


def solutions(root: Path) -> list[Page]:
    """The executed solutions, each behind a click."""
    return [
        Page(
            f"notebooks/solutions/{file.name}",
            prepared(_read(file), folded=lambda cell: "def " in cell.source, prompts=SHOW_SOLUTION),
            {},
            (f"The exercises stand at the end of [the chapter](/notebooks/{file.name}).",),
        )
        for file in sorted((root / "notebooks" / "solutions").glob("[0-9][0-9]_*.ipynb"))
    ]


def _of_run(root: Path, profile: str, run: Finished, stored) -> tuple[object, dict[str, str]]:
    """A published run's executed notebook and the facts of its header."""
    file = root / "runs" / profile / run.name / f"{run.notebook}.ipynb"
    notebook = _read(file)
    about, facts = run.about, {"profile": profile}
    if run.label != run.name:
        facts["run"] = run.label
    minutes = (
        f"{run.run['seconds'] / 60:.1f}" if run.run.get("seconds", 0) >= 3 else "less than 0.1"
    )
    memory = (
        f", {run.run['peak_memory_mb'] / 1024:.1f} GB of memory"
        if run.run.get("peak_memory_mb")
        else ""
    )
    facts["minutes"] = minutes + memory
    threads = about.get("threads", run.run.get("threads"))
    plural = "s" if threads != 1 else ""
    facts["machine"] = f"{about.get('device_name', 'not recorded')}, {threads} thread{plural}"
    if str(about.get("device", "cpu")) not in ("cpu", ""):
        facts["machine"] += f", {about['device']}"
    commit, changed = (about.get("commit") or "not recorded").partition("+")[::2]
    facts["commit"] = (commit[:10] if re.fullmatch(r"[0-9a-f]{40}", commit) else commit) + (
        changed and " + changes"
    )
    facts["date"] = str(run.run.get("started", ""))[:10]
    if _code(notebook) != _code(stored):
        facts["note"] = "the notebook has changed since this run"
    return notebook, facts


def captions_of(figures: Path, run: Finished) -> dict[str, str]:
    """Name of a figure -> its caption, of a published run."""
    folder = figures if run.name == run.notebook else figures / run.name
    records = {
        file.stem: json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*.json")
    }
    return {name: record["caption"] for name, record in records.items() if record.get("caption")}


def stored_facts(profile: str) -> dict[str, str]:
    """The header of a page without a run: its outputs are those that the tests compare."""
    return {
        "profile": f"the notebook's own defaults, as it is stored; there is no run of the {profile} profile here",
        "minutes": "about 1, on one CPU core",
    }


def _code(notebook) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if not UNSEEN & set(cell.metadata.get("tags", []))]


def _draws(cell) -> bool:
    """Whether a cell only draws: its code is of interest to few, its figure to all."""
    return "plots.save(" in cell.source or PLAYS in cell.source


def prepared(notebook, folded, prompts: dict[str, str], captions: dict[str, str] | None = None):
    """The notebook as the book shows it: figures described, code of `folded` cells behind a click,
    nothing from outside.

    captions: name of a figure -> its caption, as its run saved it.
    """
    values, before = site_alt.parameters_of(notebook), ""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = REMOTE_TAG.sub("", REMOTE_IMAGE.sub(lambda found: found[1], cell.source))
            before = cell.source
            continue
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            output for output in map(without_widget, cell.outputs) if output is not None
        ]
        # A notebook shows a cell's value and then draws its figures: here the table stands under
        # the figure.
        cell.outputs.sort(key=lambda output: output.output_type == "execute_result")
        told: dict = {}
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            table = "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)
            told["image"] = {
                "alt": site_alt.alternative(cell.source, before, values, captions or {}, table)
            }
        if folded(cell):
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-input"]
            told |= prompts
        if told:
            cell.metadata["mystnb"] = told
    notebook.cells = [one for cell in notebook.cells for one in (cell, *_after(cell))]
    return notebook


def _after(cell) -> list:
    """What the book says below a cell."""
    import nbformat

    return (
        [nbformat.v4.new_markdown_cell(MOVES, id=f"{cell.id[:50]}-moves")]
        if PLAYS in cell.source
        else []
    )


def without_widget(output):
    """A live control is nothing in a page without a kernel: its picture stays where it has one,
    else None.
    """
    if WIDGET not in output.get("data", {}):
        return output
    rest = {kind: data for kind, data in output["data"].items() if kind != WIDGET}
    if not any(kind.startswith("image/") for kind in rest):
        return None
    output["data"] = rest
    return output


def _retitle(notebook, title: str) -> None:
    notebook.cells[0].source = re.sub(
        r"# .+", lambda _: f"# {title}", notebook.cells[0].source, count=1
    )


def write(page: Page, sources: Path) -> None:
    """Put a page among the book's sources, its header under its title."""
    import nbformat

    first = page.notebook.cells[0]
    title, _, rest = first.source.lstrip().partition("\n")
    first.source = "\n\n".join(filter(None, [title, header(page.facts), *page.links, rest.strip()]))
    if page.of:  # the chapter is found by search, its further runs from there
        page.notebook.metadata["nosearch"] = True
    if page.runs:
        page.notebook.cells.append(
            nbformat.v4.new_markdown_cell(
                site_front.contents("", list(page.runs)), id="further-runs"
            )
        )
    file = sources / page.place
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page.notebook, file)


def header(facts: dict[str, str]) -> str:
    """The facts of a run as a list of terms, in HTML; empty without facts."""
    if not facts:
        return ""
    rows = (
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'```{{raw}} html\n<dl class="made">{"".join(rows)}</dl>\n```'
