"""A check: a sentence that is true or not, such as an identity. It is printed and kept."""

import json
import os
from collections.abc import Iterable

from prehab_lib.progress import say
from prehab_lib.runs import certificate


def claim(sentence: str, holds, *, paper: str, ours: str) -> None:
    """Print whether a sentence passes here, and keep it in the run's claims.jsonl.

    holds: a boolean, or several (a list, an array, a pandas Series), all of which must be true.
    paper, ours: both sides in a few words, with seeds and model on our side. What is measured and
    has a spread is no check but an effect: `verdicts`. Raises ValueError where holds is empty or
    not boolean.
    """
    holds = holds.tolist() if hasattr(holds, "tolist") else holds
    cases = list(holds) if isinstance(holds, Iterable) and not isinstance(holds, str) else [holds]
    cases = [case.item() if hasattr(case, "item") else case for case in cases]
    if not cases or not all(isinstance(case, bool) for case in cases):
        wanted = "holds must be True or False for each case"
        raise ValueError(f'claim "{sentence}": {wanted}, not {cases}')
    status = "passes" if all(cases) else "fails"
    say(f"{sentence}: {status} | paper {paper} | ours: {ours}")
    folder = certificate.run_dir()
    if folder is None:
        return
    line = {"sentence": sentence, "status": status, "paper": paper, "ours": ours}
    line |= {"notebook": os.environ.get("PREHAB_NOTEBOOK"), "profile": certificate.profile()}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "claims.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
