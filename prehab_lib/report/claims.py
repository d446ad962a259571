"""A claim is a sentence that must hold where digits may move: printed, counted, and kept."""

import json
import os
from collections.abc import Iterable

from prehab_lib.progress import say
from prehab_lib.runs import certificate


def verdict(held: int, cases: int, of: str) -> str:
    """In words; of: what the cases are."""
    counted = f"{cases} {of}".strip()
    return f"holds at {held} of {counted}" if held else f"does not hold: 0 of {counted}"


def claim(sentence: str, holds, *, paper: str, ours: str, of: str = "") -> None:
    """Print whether a sentence of the paper holds here, and keep it in the run's claims.jsonl.

    holds: one boolean, or one a case (a list, an array, a pandas Series). of: what the cases are
    ("ratios", "seeds"). paper, ours: both sides in a few words, with seeds and model on our side.
    Raises ValueError where holds is empty or not boolean.
    """
    cases = list(holds) if isinstance(holds, Iterable) and not isinstance(holds, str) else [holds]
    cases = [case.item() if hasattr(case, "item") else case for case in cases]
    if not cases or not all(isinstance(case, bool) for case in cases):
        wanted = "holds must be True or False for each case"
        raise ValueError(f'claim "{sentence}": {wanted}, not {cases}')
    held, counted = sum(cases), verdict(sum(cases), len(cases), of)
    say(f"{sentence}: {counted} | paper {paper} | ours: {ours}; compare sign and order, not size")
    folder = certificate.run_dir()
    if folder is None:
        return
    line = {"sentence": sentence, "holds": held, "cases": len(cases), "of": of, "each": cases}
    line |= {"paper": paper, "ours": ours, "notebook": os.environ.get("PREHAB_NOTEBOOK")}
    line["profile"] = certificate.profile()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claims.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
