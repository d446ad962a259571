"""What the student's copy leaves out: targets of the Makefile, and words of the notebooks, that
need files it has not.
"""

import re

TARGETS = ("help", "setup", "own-environment", "jupyter")  # what works in a student's copy
COMMANDS = ("compress",)
NOT_HERE = re.compile(
    rf"`[^`]*\bmake (?!(?:{'|'.join(TARGETS)})\b)[a-z][^`]*`"
    rf"|`[^`]*python -m prehab_lib (?!(?:{'|'.join(COMMANDS)})\b)\w[^`]*`"
    r"|\b[Tt]he README\b"
)
CLAUSE = re.compile(rf",? or [^`,.;|]*(?:{NOT_HERE.pattern})[^`,.;|]*(?=[.;,])")
SENTENCE = re.compile(r"(?<=[.?!])(?<!e\.g\.)(?<!i\.e\.) (?=[A-Z*_`\[])")


def words(source: str) -> str:
    """A text cell without the table rows, clauses and sentences that send a student to what is not
    there.
    """
    kept = []
    for line in source.split("\n"):
        if not NOT_HERE.search(line):
            kept.append(line)
        elif line.startswith("|"):
            continue
        else:
            sentences = SENTENCE.split(CLAUSE.sub("", line))
            if rest := [one for one in sentences if not NOT_HERE.search(one)]:
                kept.append(re.sub(r"^Or (\w)", lambda match: match[1].upper(), " ".join(rest)))
    return "\n".join(_without_empty_tables(kept)).strip("\n")


def _without_empty_tables(lines: list[str]) -> list[str]:
    """A head and its rule with no row below them are left out."""
    found = list(lines)
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if re.fullmatch(r"\|[-:| ]+\|", line) and not below.startswith("|"):
            found[number - 1] = found[number] = None
    return [line for line in found if line is not None]


def makefile(text: str) -> str:
    """The repository's Makefile with TARGETS alone, and help for these.  Paragraphs are its unit:
    one rule each.
    """
    kept = [one for one in re.split(r"\n\n+", text) if _stays(one)]
    lines = [line for line in "\n\n".join(kept).rstrip("\n").split("\n") if _help_stays(line)]
    found = "\n".join(lines) + "\n"
    return re.sub(r"^\.PHONY:.*$", f".PHONY: {' '.join(TARGETS)}", found, flags=re.MULTILINE)


def _stays(paragraph: str) -> bool:
    if re.search(r"^define ", paragraph, re.MULTILINE):
        return False
    rules = re.findall(r"^([a-z][\w %-]*):(?!=)", paragraph, re.MULTILINE)
    return all(name in TARGETS for rule in rules for name in rule.split())


def _help_stays(line: str) -> bool:
    if re.match(r"(JOBS|PROFILE|ENGINE|ARGS) \?=", line) or '@echo "JOBS=' in line:
        return False
    named = re.match(r'\t@echo "make ([\w-]+)', line)
    return not named or named[1] in TARGETS


def environment(text: str) -> str:
    """environment.yml, whose head says how to start: here with JupyterLab."""
    return re.sub(r"^#   make \w+ (PY=\w+)$", r"#   make jupyter \1", text, flags=re.MULTILINE)
