"""The verdicts as a page for the report and notebook 10, and as figures/PROFILE/verdicts.md."""

import os
from collections import Counter
from pathlib import Path

import pandas

from prehab_lib.report import audit, finished
from prehab_lib.runs import plan
from prehab_lib.runs.certificate import replacing

DECIDED = {"holds": "holds in every case", "mostly": "in more than half of them"}
DECIDED |= {"rarely": "in half or fewer", "does not hold": "in none"}
STATUSES = DECIDED | {"not run": "not run", "not tested here": "not tested here"}


def counted(statuses) -> str:
    """How many claims have which verdict, in one line."""
    counter = Counter(statuses)
    parts = [f"{words} {counter[status]}" for status, words in STATUSES.items() if counter[status]]
    return f"{sum(counter.values())} claims: {', '.join(parts)}."


def _table(table: pandas.DataFrame, heads: dict[str, str]) -> list[str]:
    """A Markdown table, its groups told apart by a line in bold. heads: column -> what heads it."""
    rows = [list(heads.values())]
    for group, title in audit.GROUPS.items():
        some = table.loc[table.group == group, list(heads)].to_numpy().tolist()
        if some:
            rows += [[f"**{title}**", *[""] * (len(heads) - 1)], *some]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---" * len(heads) + "|", *lines[1:]]


def page(table: pandas.DataFrame, runs: list[finished.Finished]) -> list[str]:
    """Lines of Markdown: every claim with where it stands, both sides, the verdict, and with what
    it was made.

    table: what `audit.judge` gives of these runs.
    """
    lines = [counted(table.status), ""]
    most = ", ".join(f"{name} {version}" for name, version in finished.usual(runs).items())
    if most:
        note = "the last column says where a row's were not"
        lines += [f"Most runs were made with {most}; {note}.", ""]
    incomplete = (table.missing != "") & (table.cases > 0)
    without = ("; without " + table.missing).where(incomplete, "")
    table = table.assign(verdict="**" + table.verdict + "**" + without)
    heads = {"where": "where", "says": "claim", "paper": "the paper", "ours": "here"}
    return lines + _table(table, heads | {"verdict": "verdict", "differs": "made otherwise"})


def stored(profile: str, home: Path) -> pandas.DataFrame:
    """The committed verdicts of a profile. Raises FileNotFoundError where there are none."""
    name = f"figures/{profile}/verdicts.csv"
    if not (home / name).is_file():
        remedy = f"run {profile} 10, then `python -m prehab_lib figures {profile}`"
        raise FileNotFoundError(f"there is no {name}: {remedy}")
    return pandas.read_csv(home / name, keep_default_na=False)


def text(table: pandas.DataFrame, profile: str) -> str:
    """The claims that are decided, as a page of Markdown, and how many are not."""
    heads = {"where": "where", "says": "sentence", "paper": "the paper"}
    heads["verdict"] = f"{profile} profile"
    lines = [f"# The paper's claims, and what the {profile} profile says of them", ""]
    lines += ["Made from verdicts.csv beside this file by `python -m prehab_lib verdicts`.", ""]
    lines += _table(table[table.status.isin(DECIDED)], heads)
    return "\n".join([*lines, "", f"Of {counted(table.status)}", ""])


def write(profile: str) -> str:
    """Write figures/PROFILE/verdicts.md from verdicts.csv beside it; returns its path, relative.

    Raises FileNotFoundError where the profile has no committed verdicts.
    """
    home = plan.home()
    content = text(stored(profile, home), profile)
    file = home / "figures" / profile / "verdicts.md"
    with replacing(file) as draft:
        draft.write_text(content, encoding="utf-8")
    return os.path.relpath(file)
