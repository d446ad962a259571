"""Every number in a notebook's prose stands on its page: in an output, in a shown table, or in what the paper is quoted with."""

import html
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
LESSONS = sorted(NOTEBOOKS.glob("[0-9][0-9]*_*.ipynb"))

# Words: numbers spelled out are no digits, so they are not asked. Neither are these.
NOT_QUOTED = [
    r"\$[^$]*\$",  # formulas
    r"`[^`]*`",  # code
    r"\]\([^)]*\)",  # where a link leads
    r"(?:arXiv[\s:]*)?\b\d{4}\.\d{5}(v\d+)?\b",
    r"(?i:\b(?:sections?|notebooks?|chapters?|exercises?|eqs?\.|equations?|tables?|figs?\.|lectures?|digest))\s*"
    r"[\(\d][\d.,()]*(?:\s*(?:to|and|or|,)\s*\(?\d[\d.()]*)*",  # section 3, notebooks 03 and 05, Eqs. (4) to (6)
    r"\*\*\d+\.\d+\*\*",  # the number of an exercise
    r"(?m:^\s*\d+\.\s)",  # of a list
    r"\b(?:19|20)\d\d\b",  # years
    r"\b\d+(?:\.\d+)? % (?:of the (?:parameters|weights) )?removed|removed (?:at )?\d+ %|\bat \d+(?:(?:, | and | to )\d+)* %",
    r"\b95 %",  # of an interval
    r"(?i:float|int|bfloat|fp)\d+|\b\d+ bits?\b",
    r"\b[A-Za-z]+/\d+",  # part of a name: ViT-B/16, LLaMA-7B, SST-2
    r"\b[A-Za-z]+-\d+\w*",
    r"\b\d+[A-Z]\b",
    r"\d+ : \d+|\d+ [×x] \d+",  # a shape
]
NUMBER = re.compile(r"(?<![\w.,])[−-]?\d*(?:,\d{3})*(?:\.\d+|(?<=\d))(?: %)?(?!\w)")


def value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def quoted(source: str) -> list[str]:
    """The numbers of a piece of prose, as written."""
    source = "\n".join(line for line in source.splitlines() if not line.startswith((">", "|", "#")))
    for pattern in NOT_QUOTED:
        source = re.sub(pattern, " ", source)
    return NUMBER.findall(source)


NEEDS = re.compile(r"\*\*(?:It needs|Needs:)\*\*.*")  # how long a page takes, on which machine


def prose(cells: list[dict]) -> list[str]:
    """Our text, cell by cell; without what a page says of its own cost."""
    return [NEEDS.sub("", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"]


def shown(cells: list[dict]) -> str:
    """All text of a page that is not our prose: outputs, the cell of parameters, and what the paper is quoted with."""
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts += [line for line in source.splitlines() if line.startswith(">")]
        elif "parameters" in cell["metadata"].get("tags", []):
            parts.append(source)
        for output in cell.get("outputs", []):
            texts = [output.get("text", ""), *(output.get("data", {}).get(kind, "") for kind in KINDS)]
            parts += [re.sub(r"<[^>]*>", " ", html.unescape("".join(text))) for text in texts]
    return "\n".join(parts)


KINDS = ("text/plain", "text/html", "text/markdown")
FOUND = re.compile(r"(?<![\w.])[−-]?(?:\d+(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][+-]?\d+)?")


def stands(number: str, values: list[float]) -> bool:
    """Whether a value of the page, or for per cent a hundred times it, rounds to a quoted number, of either sign."""
    scales = (1, 100) if number.endswith("%") else (1,)
    number = number.removesuffix(" %")
    digits = len(number.partition(".")[2])
    half = 0.5 * 10**-digits + 1e-9
    wanted = abs(value(number))
    return any(abs(scale * abs(one) - wanted) <= half for one in values for scale in scales)


def missing(cells: list[dict]) -> list[str]:
    """Quoted numbers that stand nowhere on the page."""
    values = [value(one) for one in FOUND.findall(shown(cells)) if one]
    return [one for text in prose(cells) for one in quoted(text) if not stands(one, values)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_quoted_numbers_stand_on_their_page(path):
    found = missing(json.loads(path.read_text(encoding="utf-8"))["cells"])
    assert not found


def test_a_planted_number_is_seen():
    table = {"data": {"text/html": ["<tr><td>12.468</td><td>0.314</td><td>1,024</td></tr>"]}}
    printed = {"text": "gain -3.05 at rank 230\n"}
    code = {"cell_type": "code", "metadata": {}, "source": ["1"], "outputs": [table, printed]}
    for words, absent in (
        ("**Read it.** It is 12.5 or 12.47, 31 %, −3.05 and 1,024 at rank 230.", []),
        ("**Read it.** It is 12.6, 32 % and 231.", ["12.6", "32 %", "231"]),
        (
            "## Summary\n\n1. In section 7 and Eq. (5), at 60 % removed, in 2024: 12.5, not 13.5.\n\n## Exercises\n\n99",
            ["13.5", "99"],
        ),
        ("**It needs** 77 s.\n\nAsked: 78. LLaMA-7B, ViT-B/16, `x = 9`, $10^9$, [a](b9).", ["78"]),
        ("> the paper: 7.5\n\n**Read it.** The 7.5 minutes were a GPU's, 8.5 nobody's.", ["8.5"]),
    ):
        cell = {"cell_type": "markdown", "metadata": {}, "source": [words]}
        assert missing([code, cell]) == absent, words
