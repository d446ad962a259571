"""A claim is a sentence that must hold where digits may move: printed, counted, and kept for the
report.
"""

import json
import os
from collections.abc import Iterable

from prehab_lib.report import records


def _verdicts(sentence: str, holds) -> list[bool]:
    values = list(holds) if isinstance(holds, Iterable) and not isinstance(holds, str) else [holds]
    values = [value.item() if hasattr(value, "item") else value for value in values]
    if not values:
        raise ValueError(f'claim "{sentence}": there is nothing to judge, holds is empty')
    if wrong := [value for value in values if not isinstance(value, bool)]:
        raise ValueError(
            f'claim "{sentence}": holds must be True or False for each case, not {wrong[0]!r}'
        )
    return values


def claim(sentence: str, holds, *, paper: str, ours: str, of: str = "") -> None:
    """Print whether a sentence of the paper holds here, and keep it in the run's claims.jsonl.

    holds: one boolean, or one a case (a list, an array, a pandas Series). of: what the cases are
    ("ratios", "seeds"). paper, ours: both sides in a few words, with seeds and model on our side.
    Raises ValueError where holds is empty or not boolean.
    """
    verdicts = _verdicts(sentence, holds)
    held, cases = sum(verdicts), f"{len(verdicts)} {of}".strip()
    verdict = f"holds at {held} of {cases}" if held else f"does not hold: 0 of {cases}"
    print(f"{sentence}: {verdict} | paper {paper} | ours: {ours}; compare sign and order, not size")
    folder = records.run_dir()
    if folder is None:
        return
    line = {
        "sentence": sentence,
        "holds": held,
        "cases": len(verdicts),
        "of": of,
        "each": verdicts,
        "paper": paper,
        "ours": ours,
        "notebook": os.environ.get("PREHAB_NOTEBOOK"),
        "profile": records.profile(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claims.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
