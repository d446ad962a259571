"""Snakemake over the runner's unit, on this machine: what cluster/try_slurm.sh does with SLURM, without SLURM."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prehab_lib import run
from prehab_lib.runs import plan
from tests import batch
from tests.processes import alive, wait_for

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(
        not importlib.util.find_spec("snakemake"), reason="Snakemake is not installed: pip install .[batch]"
    ),
    pytest.mark.skipif(sys.platform == "win32", reason="cluster/Snakefile is for Linux and macOS"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "a repository"  # the space is meant
    home.mkdir()
    monkeypatch.chdir(home)
    return batch.make(home, kinds=["three"], waits=True)


def command(target: str) -> list:
    snakemake = [sys.executable, "-m", "snakemake", "-s", ROOT / "cluster" / "Snakefile", "--cores", "2"]
    return [*snakemake, "--workflow-profile", ROOT / "cluster" / "local", "--config", "plan=plan.json", "--", target]


def said_by(words: list, code: int) -> str:
    done = subprocess.run(
        words, env=batch.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def everything(*notebooks: str, code: int = 0) -> str:
    """What `make cluster` does."""
    words = ["laptop", "local", *notebooks, "--threads", "1", "--", "--cores", "2"]
    return said_by([sys.executable, ROOT / "cluster" / "run.py", *words], code)


def test_a_run_with_a_gpu_asks_for_one_and_only_that(home):
    planned = plan.runs(home, "laptop", ["00", "02"], {}, threads=1)
    priced = plan.Price(minutes=20, memory_mb=3000, gpu_memory_gb=4)
    data = plan.as_data([planned[0], replace(planned[1], gpu=1, threads=2, price=priced)])
    (home / "plan.json").write_text(json.dumps(data))
    told = said_by([*command("runs")[:-2], "--dry-run", "--", "runs"], code=0).split("\nrule ")
    [plain] = [job for job in told if job.startswith("run:")]
    [asking] = [job for job in told if job.startswith("run_on_gpu:")]
    assert "wildcards: run=00_base" in plain and "gpu=" not in plain and "mem_mb=13000" in plain
    assert "wildcards: run=02_bad" in asking and "gpu=1," in asking and "threads: 2" in asking
    assert "mem_mb=5500" in asking and "runtime=60" in asking


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_life_of_a_plan(home, tmp_path, monkeypatch):
    """Killed in the middle, resumed with what is missing, one run failing; then what comes last, and the pool beside it."""
    planned = plan.runs(home, "laptop", [], {}, threads=1)
    (home / "plan.json").write_text(json.dumps(plan.as_data(planned)))
    (home / "wait").touch()
    pid, done = home / "kernel.pid", home / "runs" / "laptop"
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(command("runs"), env=batch.environment(), stdout=said, stderr=said)
    try:
        wait_for(
            lambda: len(list(done.glob("0*/run.json"))) == 2 and pid.exists() and pid.read_text(),
            "two runs and a third",
            seconds=90,
        )
        wait_for(
            lambda: list((home / "runs" / ".store").glob("*.failed")),
            "a failure, which stops neither of them",
            seconds=90,
        )
        kernel = int(pid.read_text())
        assert f"another engine is at work on {home / 'plan.json'}: wait for it" in said_by(command("runs"), code=1)
        assert alive(kernel)
    except BaseException:
        (home / "wait").unlink()  # whatever was started comes to its end
        raise
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    try:
        wait_for(lambda: not alive(kernel), "the kernel was alive two seconds after Snakemake", seconds=2)
    finally:
        if alive(kernel):
            os.kill(kernel, signal.SIGKILL)
    assert batch.executed(home) == ["00_base one 0", "01_grid three 0", "02_bad one 0", "04_slow one 0"]

    (home / "wait").unlink()
    said = everything(code=1)  # no stale lock, no word of incomplete files
    kept = next((home / "runs" / ".store").glob("*.failed/02_bad.ipynb")).relative_to(home)
    told = f"  failed: 02_bad: RuntimeError: planted (see {kept})\n  skipped: 03_after: it needs 02_bad\n"
    # The first when Snakemake has done what it can, the second at the very end.
    assert f"3 of 6 runs are stored\n{told}  missing: 10_audit\n" in said
    assert f"4 of 6 runs are stored\n{told}written: runs/laptop/report.md\n" in said
    assert "so far" in kept.read_text() and "planted" in kept.read_text()
    assert batch.executed(home) == ["02_bad one 0", "04_slow one 0"]

    pool = batch.make(tmp_path / "pool", kinds=["three"], waits=True)
    monkeypatch.chdir(pool)
    assert run.main("laptop", threads=1) == 1
    ours, theirs = batch.records(home), batch.records(pool)
    assert list(ours) == ["00_base", "01_grid.kind=three,seed=0", "04_slow", "10_audit"] and ours == theirs
    assert {one["facts"][0]["threads"] for one in ours.values()} == {1}
    assert "'01_grid.kind=three,seed=0': [" in ours["10_audit"]["printed"][0]  # it read them all

    said = everything("00", "01", "04")  # nothing to do: Snakemake is not even started
    assert "3 of 3 runs are stored" in said and "Building DAG" not in said
    assert batch.executed(pool) == ["00_base one 0", "01_grid three 0", "02_bad one 0", "04_slow one 0"]
