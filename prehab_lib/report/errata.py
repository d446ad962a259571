"""Where the paper disagrees with its reference, its release or itself: rows of `errata.yaml`."""

import html
import re
from functools import cache
from pathlib import Path

import yaml

_COLUMNS = {"item": "item", "printed": "as printed", "cited": "as cited"}
_COLUMNS |= {"released": "as released", "ours": "what we do"}


@cache
def rows() -> tuple[dict[str, str], ...]:
    """All rows in the order of the file: topic, item, printed, cited, released, ours."""
    file = Path(__file__).with_name("errata.yaml")
    topics = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple({"topic": topic} | row for topic, several in topics.items() for row in several)


def to_html(topic: str | None = None) -> str:
    """The rows as an HTML table that wraps its text: of one topic, or all of them.

    Raises ValueError for a topic that no row has.
    """
    topics = dict.fromkeys(row["topic"] for row in rows())
    if topic is not None and topic not in topics:
        raise ValueError(f"topic = {topic!r}: the errata are sorted by {', '.join(topics)}")
    lines = [_line("th", _COLUMNS)]
    lines += [_line("td", row) for row in rows() if topic in (None, row["topic"])]
    return "\n".join(["<table>", *lines, "</table>"])


def _line(tag: str, row: dict[str, str]) -> str:
    opening = f'<{tag} style="text-align: left; vertical-align: top; white-space: normal">'
    # ‖M‖_F and ‖M‖_* get a real subscript; nuclear_ratio stays as it is
    texts = [re.sub(r"_([*F2X])", r"<sub>\1</sub>", html.escape(row[name])) for name in _COLUMNS]
    return "<tr>" + "".join(f"{opening}{text}</{tag}>" for text in texts) + "</tr>"
