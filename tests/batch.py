"""A small repository whose runs go through every fate: a grid, one that fails, one that it stops, one that reads them all."""

import json
import os
from pathlib import Path

from tests.conftest import write_notebook

SCORES = """\
import os, pathlib, time
import numpy as np
from prehab_lib import records, upstream
with open(pathlib.Path(os.environ["PREHAB_NOTEBOOK_DIR"]).parent / "executed.txt", "a") as file:
    file.write(f"{os.environ['PREHAB_NOTEBOOK']} {kind} {seed}\\n")
started = time.perf_counter()
"""
SCORE = """\
draw = np.random.default_rng(seed).standard_normal((64, 64))
value = float(np.linalg.svd(draw, compute_uv=False)[0]) + len(kind)
for needed in ("00_base",) if os.environ["PREHAB_NOTEBOOK"] == "01_grid" else ():
    value += sum(found["records"][0]["value"] for found in upstream.results(needed).values())
record = {"method": kind, "removed": 0.4, "achieved": 0.4, "metric": "norm", "higher_is_better": False, "control": False,
          "seed": seed, "value": value, "seconds": time.perf_counter() - started}
result = {"about": records.birth_certificate(), "protocol": "largest singular value of a draw", "records": [record]}
records.write_json(records.run_dir() / "result.json", result)  # as records.Results does, without a second for pandas
print(round(value, 6))
"""
PARAMETERS = "kind: str = 'one'  # a word\nseed: int = 0  # of the draw\n"
FAILS = """\
print("so far")
if (pathlib.Path(os.environ["PREHAB_NOTEBOOK_DIR"]).parent / "broken").exists():
    raise RuntimeError("planted")
"""
WAITS = """\
home = pathlib.Path(os.environ["PREHAB_NOTEBOOK_DIR"]).parent
(home / "kernel.pid").write_text(str(os.getpid()))
while (home / "wait").exists():
    time.sleep(0.1)
"""
READS = """\
import json, os, pathlib
found = {file.parent.name: json.loads(file.read_text())["records"] for file in
         sorted(pathlib.Path(os.environ["PREHAB_RUNS"]).glob("*/result.json"))}
print({name: [round(record["value"], 6) for record in records] for name, records in found.items()})
"""
# What differs between two runs of the same thing: when and where it ran, how long, and keys, which hash all this upstream.
PASSING = {"seconds", "started", "peak_memory_mb", "memory_mb", "host", "key"}

UNSTABLE = "nbval-ignore-output"  # the tag of cells that print seconds


def make(home: Path, kinds=("one", "three"), seeds=1, waits=False) -> Path:
    """Notebooks with a profile "laptop": 3 + kinds x seeds runs and one that comes last; one more that waits, if asked for."""
    notebooks = home / "notebooks"
    write_notebook(notebooks / "00_base.ipynb", SCORES, SCORE, parameters=PARAMETERS)
    write_notebook(notebooks / "01_grid.ipynb", SCORES, SCORE, parameters=PARAMETERS, needs=["00_base"])
    write_notebook(notebooks / "02_bad.ipynb", SCORES, FAILS, SCORE, parameters=PARAMETERS)
    write_notebook(notebooks / "03_after.ipynb", SCORES, SCORE, parameters=PARAMETERS, needs=["02_bad"])
    if waits:
        write_notebook(notebooks / "04_slow.ipynb", SCORES, WAITS, SCORE, parameters=PARAMETERS)
    last = write_notebook(notebooks / "10_audit.ipynb", READS)
    content = json.loads(last.read_text())
    content["metadata"]["prehab"] = {"last": True}
    last.write_text(json.dumps(content))
    (home / "params").mkdir()
    grid = f"# kinds and seeds\ngrid: {{kind: [{', '.join(kinds)}], seed: 0..{seeds - 1}}}\n"
    (home / "params" / "01_grid.laptop.yaml").write_text(grid)
    (home / "broken").touch()
    return home


def executed(home: Path) -> list[str]:
    """What was executed since the last call of this, one line a run, sorted."""
    file = home / "executed.txt"
    lines = sorted(file.read_text().splitlines()) if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def lasting(content):
    """JSON without what may differ between two runs of the same thing."""
    if isinstance(content, dict):
        return {name: lasting(value) for name, value in content.items() if name not in PASSING}
    return [lasting(value) for value in content] if isinstance(content, list) else content


def records(home: Path, profile: str = "laptop") -> dict[str, dict]:
    """Run -> its facts, scores and what its notebook printed, without what may differ."""
    found = {}
    for folder in sorted((home / "runs" / profile).iterdir()):
        if not (folder / "run.json").is_file():
            continue
        notebook = json.loads(next(folder.glob("*.ipynb")).read_text())
        cells = [cell for cell in notebook["cells"] if UNSTABLE not in cell["metadata"].get("tags", [])]
        printed = ["".join(map(_text, cell.get("outputs", []))) for cell in cells]
        files = (folder / name for name in ("run.json", "result.json"))
        facts = [lasting(json.loads(file.read_text())) for file in files if file.is_file()]
        found[folder.name] = {"facts": facts, "printed": printed}
    return found


def _text(output: dict) -> str:
    """What a reader sees of an output as text."""
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))


def environment() -> dict[str, str]:
    """For a process started in such a repository."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
