"""Where the paper disagrees with its reference, its release or itself: rows of `errata.yaml`."""

import html
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

_FILE = Path(__file__).with_name("errata.yaml")
_HEADINGS = ("item", "as printed", "as cited", "as released", "what we do")


@dataclass(frozen=True)
class Erratum:
    """One disagreement.  `topic` groups the rows; "–" stands where a source is silent."""

    topic: str
    item: str
    printed: str
    cited: str
    released: str
    ours: str


@cache
def rows() -> tuple[Erratum, ...]:
    """All rows, in the order of the file."""
    topics = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tuple(Erratum(topic, **row) for topic, several in topics.items() for row in several)


def to_html(topic: str | None = None) -> str:
    """The rows as an HTML table that wraps its text: of one topic, or all of them.

    Raises ValueError for a topic that no row has.
    """
    topics = dict.fromkeys(row.topic for row in rows())
    if topic is not None and topic not in topics:
        raise ValueError(f"topic = {topic!r}: the errata are sorted by {', '.join(topics)}")
    lines = [_line("th", _HEADINGS)]
    for row in rows():
        if topic in (None, row.topic):
            lines.append(_line("td", (row.item, row.printed, row.cited, row.released, row.ours)))
    return "\n".join(["<table>", *lines, "</table>"])


def _line(tag: str, texts: tuple[str, ...]) -> str:
    style = "text-align: left; vertical-align: top; white-space: normal"
    cells = "".join(f'<{tag} style="{style}">{_marked_up(text)}</{tag}>' for text in texts)
    return f"<tr>{cells}</tr>"


def _marked_up(text: str) -> str:
    # ‖M‖_F and ‖M‖_* get a real subscript; nuclear_ratio stays as it is
    return re.sub(r"_([*F2X])", r"<sub>\1</sub>", html.escape(text))
