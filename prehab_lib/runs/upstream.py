"""Results of the runs a notebook needs: `"prehab": {"needs": ["04_bert_glue"]}` in its metadata,
then read here.
"""

import json
import os
from pathlib import Path


def results(notebook: str) -> dict[str, dict]:
    """Run -> result.json of every run of a notebook, in the plan's order: one, or those of its
    grid.

    Runs without scores are left out. Empty outside a run of `python -m prehab_lib run`, where
    nothing was run before. Raises ValueError inside one whose notebook does not declare the need.
    """
    if "PREHAB_NEEDS" not in os.environ:
        return {}
    found, declared = {}, set()
    for name in json.loads(os.environ["PREHAB_NEEDS"]):
        folder = Path(os.environ["PREHAB_RUNS"]) / name
        of = json.loads((folder / "run.json").read_text(encoding="utf-8"))["notebook"]
        declared.add(of)
        if of == notebook and (folder / "result.json").is_file():
            found[name] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    if notebook not in declared:
        needs = json.dumps({"prehab": {"needs": [notebook]}})
        raise ValueError(
            f"{os.environ.get('PREHAB_NOTEBOOK')} reads {notebook}: declare it, {needs} in its metadata"
        )
    return found
