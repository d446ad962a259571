"""A small repository whose runs go through every fate: a grid, one that fails, one that waits, one that reads them all.

And what tests ask of processes that they started: whether they live, and waiting for what they do.
"""

import json
import os
import time
from pathlib import Path

from tests.conftest import write_notebook

SCORES = """\
import os, pathlib, time
import numpy as np
from prehab_lib.runs import certificate
home = pathlib.Path(os.environ["PREHAB_NOTEBOOK_DIR"]).parent
with open(home / "executed.txt", "a") as file:
    file.write(f"{os.environ['PREHAB_NOTEBOOK']} {kind} {seed}\\n")
started = time.perf_counter()
"""
SCORE = """\
draw = np.random.default_rng(seed).standard_normal((64, 64))
value = float(np.linalg.svd(draw, compute_uv=False)[0]) + len(kind)
record = {"method": kind, "removed": 0.4, "seed": seed, "value": value, "seconds": time.perf_counter() - started}
result = {"about": certificate.birth_certificate(), "records": [record]}
certificate.write_json(certificate.run_dir() / "result.json", result)
print(round(value, 6))
"""
PARAMETERS = "kind: str = 'one'  # a word\nseed: int = 0  # of the draw\n"
FAILS = """\
print("so far")
if (home / "broken").exists():
    raise RuntimeError("planted")
"""
WAITS = """\
(home / "kernel.pid").write_text(str(os.getpid()))
while (home / "wait").exists():
    time.sleep(0.05)
"""
READS = """\
import json, os, pathlib
read = {file.parent.name: json.loads(file.read_text())["records"] for file in
        sorted(pathlib.Path(os.environ["PREHAB_RUNS"]).glob("*/result.json"))}
print({name: [round(record["value"], 6) for record in records] for name, records in read.items()})
"""
# What differs between two runs of the same thing: when and where it ran, how long, and keys, which hash all this.
PASSING = {"seconds", "started", "peak_memory_mb", "key", "sha256"}


def make(home: Path) -> Path:
    """Notebooks with a profile "laptop": four runs, one of which fails and one waits, and one that comes last."""
    notebooks = home / "notebooks"
    write_notebook(notebooks / "01_grid.ipynb", SCORES, SCORE, parameters=PARAMETERS)
    write_notebook(notebooks / "02_bad.ipynb", SCORES, FAILS, SCORE, parameters=PARAMETERS)
    write_notebook(notebooks / "04_slow.ipynb", SCORES, WAITS, SCORE, parameters=PARAMETERS)
    write_notebook(notebooks / "10_audit.ipynb", READS, last=True)
    (home / "params").mkdir(parents=True)
    (home / "params" / "01_grid.laptop.yaml").write_text("# kinds and a seed\ngrid: {kind: [one, three], seed: 0..0}\n")
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


def printed(notebook: Path) -> str:
    """What the cells of an executed notebook printed."""
    cells = json.loads(notebook.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def records(home: Path, profile: str = "laptop") -> dict[str, list]:
    """Run -> its facts, scores and what its notebook printed, without what may differ."""
    found = {}
    for facts in sorted((home / "runs" / profile).glob("*/run.json")):
        files = [file for file in (facts, facts.with_name("result.json")) if file.is_file()]
        read = [lasting(json.loads(file.read_text())) for file in files]
        found[facts.parent.name] = [*read, printed(next(facts.parent.glob("*.ipynb")))]
    return found


def environment() -> dict[str, str]:
    """For a process started in such a repository."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def alive(pid: int) -> bool:
    """Running, and not merely waiting to be buried."""
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition, what: str = "it did not happen in time", seconds: float = 60):
    """What the condition gives, as soon as that is true.  what: is said where that takes longer than `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return value
