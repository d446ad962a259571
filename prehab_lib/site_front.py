"""The book's pages that are no notebooks: the front page with its verdicts, the figures, and the
rest of the README.
"""

import html
import json
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from prehab_lib.report import audit, verdicts
from prehab_lib.runs.store import copy

if TYPE_CHECKING:
    import pandas

    from prehab_lib.site_pages import Page

VERDICTS = re.compile(r"<!-- verdicts.*?-->.*?<!-- end of verdicts -->", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->\n?", re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
HEAD = ("where", "claim", "the paper", "verdict here")


def sections(readme: str) -> dict[str, str]:
    """A README by its headings of the second level; under "" what stands before them, without title
    and verdicts.
    """
    text = COMMENT.sub("", VERDICTS.sub("", readme))
    # A line in a block of code that begins with ## is no heading.
    pieces = FENCED.split(text)
    marked = "".join(
        piece if piece.startswith("```") else re.sub(r"^## ", "\0", piece, flags=re.M)
        for piece in pieces
    )
    before, *rest = marked.split("\0")
    found = {"": re.sub(r"\A\s*# .*\n", "", before).strip()}
    for piece in rest:
        title, _, body = piece.partition("\n")
        found[title.strip()] = body.strip()
    return found


def title(readme: str) -> str:
    """Its first heading."""
    found = re.match(r"\s*# (.+)", readme)
    return found[1].strip() if found else "A companion you can run"


def relinked(text: str, profile: str, places: set[str], drawn: Path, repository: str) -> str:
    """The README's links as they hold in the book.

    places: notebooks of the book. drawn: the folder of its figures. A link to another file of the
    repository leads to its page on the host (repository: owner/name), or is only text where that is
    not known.
    """

    def link(found: re.Match) -> str:
        picture, words, target = found.groups()
        path = target.partition("#")[0].rstrip("/")
        if "://" in target or target.startswith("#") or picture:
            return found[0]
        if path in places:
            return f"[{words}](/{path})"
        if f"{path}/".startswith(f"figures/{profile}/"):
            name = str(PurePosixPath(path).with_suffix("").relative_to(f"figures/{profile}"))
            shown = (drawn / f"{name}.png").is_file()
            return f"[{words}](#{anchor_of(name)})" if shown else f"[{words}](/figures.md)"
        return (
            f"[{words}](https://github.com/{repository}/blob/HEAD/{path})" if repository else words
        )

    pieces = FENCED.split(text)
    return "".join(piece if piece.startswith("```") else LINK.sub(link, piece) for piece in pieces)


def anchor_of(figure: str) -> str:
    """The place of a figure on the page of figures. figure: its name, in a grid with its run's in
    front.
    """
    return "fig-" + re.sub(r"[^a-z0-9]+", "-", figure.lower()).strip("-")


def told_of(readme: str) -> dict[str, tuple[str, str]]:
    """Chapter -> what it shows and which items of the paper, from the README's table of notebooks."""
    rows = re.findall(
        r"^\| *\[[^\]]*\]\(notebooks/(\w+)\.ipynb\) *\|(.*?)\|(.*?)\|\s*$", readme, re.MULTILINE
    )
    return {name: (shows.strip(), items.strip()) for name, shows, items in rows}


def chapters(pages: list["Page"], told: dict[str, tuple[str, str]]) -> str:
    """A card for each chapter: its title, what it shows, and how long its run took."""
    cards = []
    for page in pages:
        if page.of:
            continue
        shows, items = told.get(PurePosixPath(page.place).stem, ("", ""))
        minutes = re.match(r"[\d.]+|less than [\d.]+", page.facts.get("minutes", ""))
        made = (
            f"{page.facts['profile']} profile, {minutes[0]} minutes"
            if minutes
            else "stored outputs, about 1 minute"
        )
        foot = " · ".join(filter(None, [items, made]))
        cards.append(
            f"::::{{grid-item-card}} {page.title}\n:link: /{page.place.removesuffix('.ipynb')}\n:link-type: doc\n\n"
            f"{shows[:1].upper() + shows[1:]}\n\n:::{{card-footer}}\n{foot}\n:::\n::::"
        )
    return "\n\n".join([":::::{grid} 1 1 2 2\n:gutter: 3\n:padding: 0", *cards, ":::::"])


def contents(caption: str, places: list[str]) -> str:
    """A table of contents for the side of every page; without a caption, of what stands below a
    page.
    """
    return "\n".join(
        [
            "```{toctree}",
            ":hidden:",
            *([f":caption: {caption}"] if caption else []),
            "",
            *places,
            "```",
        ]
    )


def verdict_table(table: "pandas.DataFrame") -> str:
    """Every claim with its verdict, in HTML: one bar of how many hold, and a table to sort.

    table: what `verdicts.stored` reads.
    """
    counts = table.status.value_counts()
    told = [
        (status, words, int(counts.get(status, 0))) for status, words in verdicts.STATUSES.items()
    ]
    bar = "".join(
        f'<li class="{_class(status)}" style="flex-grow:{count}"><b>{count}</b> {html.escape(words)}</li>'
        for status, words, count in told
        if count
    )
    rows = []
    for group, label in audit.GROUPS.items():
        own = table[table.group == group]
        if len(own):
            rows.append(
                f'<tbody><tr class="group"><th colspan="{len(HEAD)}" scope="rowgroup">{html.escape(label)}</th></tr>'
            )
            rows += [_row(one) for one in own.itertuples(index=False)]
            rows.append("</tbody>")
    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    return (
        f'<p>{len(table)} claims, and in how many of their cases they hold here:</p><ul class="tally">{bar}</ul>'
        f'<div class="scrolls"><table class="verdicts"><thead><tr>{head}</tr></thead>{"".join(rows)}</table></div>'
    )


def _row(one) -> str:
    cells = [f"<td>{html.escape(str(text))}</td>" for text in (one.where, one.says, one.paper)]
    cases = int(one.cases or 0)
    share = f"{int(one.held) / cases:.4f}" if cases else ""
    missing = f"; without {html.escape(one.missing)}" if one.missing and cases else ""
    cells.append(
        f'<td data-sort="{share}"><span class="{_class(one.status)}">{html.escape(one.verdict)}</span>{missing}</td>'
    )
    return f"<tr>{''.join(cells)}</tr>"


def _class(status: str) -> str:
    return "verdict " + status.replace(" ", "-")


def raw(text: str) -> str:
    return f"```{{raw}} html\n{text}\n```"


def figures(
    folder: Path, sources: Path, profile: str, alternatives: dict[str, str], places: set[str]
) -> str:
    """The page of figures, and their files among the sources: each as large as it was saved, with
    its record and numbers.

    folder: figures of a profile. alternatives: name of a figure -> its alternative text.
    """
    lines = [
        f"# Figures of the {profile} profile",
        "Each as it was saved by its run, with the numbers that are drawn.",
    ]
    for file in sorted(folder.rglob("*.png"), key=lambda file: (_maker(file), str(file))):
        record = _record(file)
        name = file.relative_to(folder).with_suffix("").as_posix()
        copy(file, sources / "figures" / profile / f"{name}.png")
        notebook, about = _maker(file), record.get("about", {})
        caption = record.get("caption") or file.stem
        run = name.rpartition("/")[0].removeprefix(f"{notebook}.")
        heading = f"{caption} ({run})" if run and run not in caption else caption
        seeds = record.get("seeds", record.get("seed"))
        made = [
            f"[{notebook}](/notebooks/{notebook}.ipynb)"
            if f"notebooks/{notebook}.ipynb" in places
            else notebook,
            f"seeds {', '.join(map(str, seeds))}"
            if isinstance(seeds, list)
            else f"seed {seeds}"
            if seeds is not None
            else "",
            f"commit {about['commit'][:10]}" if about.get("commit") else "",
        ]
        if (table := file.with_suffix(".csv")).is_file():
            copy(table, sources / "figures" / profile / f"{name}.csv")
            made.append(f"{{download}}`numbers (CSV) </figures/{profile}/{name}.csv>`")
        lines += [
            f"({anchor_of(name)})=\n## {_escaped(_titled(heading))}",
            f"```{{image}} /figures/{profile}/{name}.png\n:alt: {alternatives.get(file.stem) or caption}\n"
            f":width: {_width(file) // 2}px\n:loading: lazy\n```",
            " · ".join(filter(None, made)),
        ]
    return "\n\n".join(lines)


def _titled(text: str) -> str:
    """With a capital where a word begins it; σ₁ and blocks.0 keep theirs."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+([ ,;:]|$)", text) else text


def _escaped(text: str) -> str:
    return re.sub(r"([$*_<`\[])", r"\\\1", text)


def _width(file: Path) -> int:
    """Pixels across, of a PNG file: they are saved at twice the resolution of a screen."""
    return int.from_bytes(file.read_bytes()[16:20], "big")


def _record(file: Path) -> dict:
    try:
        return json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _maker(file: Path) -> str:
    """The notebook that drew a figure."""
    return str(_record(file).get("about", {}).get("notebook") or "").partition(".")[0]
