"""The page of verdicts: for the report and notebook 10 as Markdown, as a table to keep, and as the
README's section.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from prehab_lib.report import audit
from prehab_lib.report.finished import Finished
from prehab_lib.runs import plan

if TYPE_CHECKING:
    import pandas

COLUMNS = [
    "id",
    "group",
    "where",
    "says",
    "paper",
    "ours",
    "verdict",
    "status",
    "held",
    "cases",
    "missing",
    "differs",
]
STATUSES = {
    "holds": "holds in every case",
    "mostly": "in more than half of them",
    "rarely": "in half or fewer",
    "does not hold": "in none",
    "not run": "not run",
    "not tested here": "not tested here",
}
DECIDED = list(STATUSES)[:4]
BEGIN, END = (
    "<!-- verdicts, from {file}: python -m prehab_lib verdicts -->",
    "<!-- end of verdicts -->",
)


def frame(verdicts: list[audit.Verdict]) -> "pandas.DataFrame":
    """A row a claim, in the order of the page, with the columns COLUMNS."""
    import pandas

    rows = []
    for one in verdicts:
        claim = one.claim
        sides = (
            claim.id,
            claim.group,
            claim.where,
            claim.says,
            one.paper,
            one.ours,
            one.text,
            one.status,
        )
        rows.append((*sides, one.held, one.cases, ", ".join(one.missing), one.differs))
    return pandas.DataFrame(rows, columns=COLUMNS)


def counted(statuses) -> str:
    """How many claims have which verdict, in one line."""
    seen = Counter(statuses)
    told = [f"{words} {seen[status]}" for status, words in STATUSES.items() if seen[status]]
    return f"{sum(seen.values())} claims: {', '.join(told)}."


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _table(head: tuple[str, ...], groups: list[tuple[str, list[tuple[str, ...]]]]) -> list[str]:
    """One Markdown table, the groups told apart by a line in bold."""
    lines = [_line(*head), "|---" * len(head) + "|"]
    for group, rows in groups:
        lines.append(_line(f"**{audit.GROUPS[group]}**", *[""] * (len(head) - 1)))
        lines += [_line(*row) for row in rows]
    return lines


def page(verdicts: list[audit.Verdict], runs: list[Finished]) -> list[str]:
    """Lines of Markdown: every claim with where it stands, both sides, the verdict, and with what
    it was made.
    """
    most = ", ".join(f"{name} {version}" for name, version in audit.usual(runs).items())
    lines = [counted(one.status for one in verdicts), ""]
    if most:
        lines += [
            f"Most runs were made with {most}; the last column says where a row's were not.",
            "",
        ]

    def row(one: audit.Verdict) -> tuple[str, ...]:
        without = f"; without {', '.join(one.missing)}" if one.missing and one.cases else ""
        return (
            one.claim.where,
            one.claim.says,
            one.paper,
            one.ours,
            f"**{one.text}**{without}",
            one.differs,
        )

    groups = [
        (group, [row(one) for one in verdicts if one.claim.group == group])
        for group in audit.GROUPS
    ]
    return lines + _table(
        ("where", "claim", "the paper", "here", "verdict", "made otherwise"), groups
    )


def section(table: "pandas.DataFrame", profile: str) -> str:
    """The README's lines between its markers: the claims that are decided, and how many are not."""
    decided = table[table.status.isin(DECIDED)].fillna("")
    groups = [
        (
            group,
            list(rows[["where", "says", "paper", "verdict"]].itertuples(index=False, name=None)),
        )
        for group in audit.GROUPS
        if len(rows := decided[decided.group == group])
    ]
    lines = _table(("where", "sentence", "the paper", f"{profile} profile"), groups)
    return "\n".join(["", *lines, "", f"Of {counted(table.status)}", ""])


def file_of(profile: str) -> str:
    """Where the committed verdicts of a profile lie, relative."""
    return f"figures/{profile}/verdicts.csv"


def stored(profile: str, home: Path) -> "pandas.DataFrame":
    """The committed verdicts of a profile. Raises FileNotFoundError where there are none."""
    import pandas

    file = home / file_of(profile)
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no {file_of(profile)}: run {profile} 10, then `python -m prehab_lib figures {profile}`"
        )
    return pandas.read_csv(file, keep_default_na=False)


def renewed(readme: str, table: "pandas.DataFrame", profile: str) -> str:
    """A README with its section of verdicts as the table says. Raises ValueError where it has no
    such section.
    """
    begin = BEGIN.format(file=file_of(profile))
    before, opened, rest = readme.partition(begin + "\n")
    _, closed, after = rest.partition(END)
    if not opened or not closed:
        raise ValueError(
            f"README.md has no section of verdicts: put {begin} and {END} around it, each on its own line"
        )
    return before + opened + section(table, profile) + closed + after


def write_readme(profile: str, home: Path | None = None) -> bool:
    """Rewrite README.md's section of verdicts from figures/PROFILE; returns whether anything
    changed.
    """
    home = home or plan.home()
    file = home / "README.md"
    readme = file.read_text(encoding="utf-8")
    text = renewed(readme, stored(profile, home), profile)
    file.write_text(text, encoding="utf-8")
    return text != readme
