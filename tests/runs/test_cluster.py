"""Snakemake over the runner's unit on this machine, and what cluster/ holds for engines that are not run here."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prehab_lib import __main__
from tests import batch
from tests.batch import alive, wait_for

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
PROFILES = sorted(CLUSTER.glob("*/config.yaml"))
# Of snakemake-executor-plugin-kubernetes 0.5.1, which the lock does not hold: the fields of its ExecutorSettings.
KUBERNETES = {"namespace", "cpu-scalar", "service-account-name", "privileged", "persistent-volumes"}
RUNS_SNAKEMAKE = importlib.util.find_spec("snakemake") and sys.platform != "win32"
needs_snakemake = pytest.mark.skipif(not RUNS_SNAKEMAKE, reason="Snakemake is not installed")


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "a repository"  # the space is meant
    home.mkdir()
    monkeypatch.chdir(home)
    return batch.make(home)


def command(target: str, *words: str, options=()) -> list:
    snakemake = [sys.executable, "-m", "snakemake", "-s", CLUSTER / "Snakefile", "--cores", "2", *options]
    profile = ["--workflow-profile", CLUSTER / "local"]
    return [*snakemake, *profile, "--config", "profile=laptop", f"words={shlex.join(words)}", "--", target]


def said_by(words: list, code: int = 0) -> str:
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
    done = subprocess.run(words, env=batch.environment(), **pipes)
    assert done.returncode == code, done.stdout
    return done.stdout


@needs_snakemake
@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_life_of_a_profile(home, tmp_path, monkeypatch):
    """Killed in the middle, resumed with what is missing, one run failing; then what comes last, and the pool beside it."""
    pool = [sys.executable, "-m", "prehab_lib", "run", "laptop", "--threads", "1"]
    words, pid, kept = ["--threads", "1"], home / "kernel.pid", home / "runs" / ".store"
    (home / "wait").touch()
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(command("runs", *words), env=batch.environment(), stdout=said, stderr=said)
    kernel = 0
    try:
        published = home / "runs" / "laptop"
        wait_for(lambda: len(list(published.glob("*/run.json"))) == 2, "the two runs of the grid", seconds=90)
        wait_for(lambda: list(kept.glob("*.failed")), "a failure, which stops no other", seconds=90)
        kernel = int(wait_for(lambda: pid.exists() and pid.read_text(), "the run that waits", seconds=90))
        busy = "another driver is at work on runs/laptop"
        assert busy in said_by(command("runs", *words), code=1) and busy in said_by(pool, code=2)
        assert alive(kernel)
        first.kill()
        first.wait()
        wait_for(lambda: not alive(kernel), "the kernel was alive two seconds after Snakemake", seconds=2)
    finally:
        (home / "wait").unlink()
        first.kill()
        if kernel and alive(kernel):
            os.kill(kernel, signal.SIGKILL)
    assert batch.executed(home) == ["01_grid one 0", "01_grid three 0", "02_bad one 0", "04_slow one 0"]

    said = said_by(command("runs", *words), code=1)  # no stale lock, no word of incomplete files
    kept = next(kept.glob("*.failed/02_bad.ipynb")).relative_to(home)
    rows = [" ".join(line.split()) for line in said.splitlines()]
    assert f"02_bad 1 no failed: RuntimeError: planted (see {kept})" in rows
    assert "04_slow 1 no yes" in rows and "10_audit 1 no no" in rows
    assert "so far" in kept.read_text() and "planted" in kept.read_text()
    assert batch.executed(home) == ["02_bad one 0", "04_slow one 0"]
    said_by(command("last", *words))

    other = tmp_path / "pool"
    other.mkdir()
    batch.make(other)
    monkeypatch.chdir(other)
    said_by(pool, code=1)
    ours, theirs = batch.records(home), batch.records(other)
    assert list(ours) == ["01_grid.kind=one,seed=0", "01_grid.kind=three,seed=0", "04_slow", "10_audit"]
    assert ours == theirs and "'01_grid.kind=three,seed=0': [" in ours["10_audit"][1]  # it read them all


@needs_snakemake
def test_words_and_resources_reach_the_jobs(home):
    write = batch.write_notebook
    write(home / "notebooks" / "05_gpu.ipynb", "1", parameters="device: str = 'auto'  # where\nseed: int = 0  # one\n")
    options = ["--dry-run", "--printshellcmds", "--set-resources", "run_on_gpu:mem_mb=64000"]
    words = ["02", "05", "-p", "seed=7", "--grid", "seed=[1, 2]", "--threads", "2"]
    refused = said_by(command("runs", *words, options=options), code=1)
    assert "seed stands in -p and in --grid" in refused
    del words[2:4]
    jobs = said_by(command("runs", *words, options=options)).split("\nrule ")
    plain = [job for job in jobs if job.startswith("run:")]
    asking = [job for job in jobs if job.startswith("run_on_gpu:")]
    assert (len(plain), len(asking)) == (2, 2)
    assert all("gpu=" not in job and "mem_mb=8000" in job for job in plain)
    assert all("gpu=1," in job and "threads: 2" in job and "mem_mb=64000" in job for job in asking)
    expected = "one laptop 02 05 --grid 'seed=[1, 2]' --threads 2 --threads 2 --name 02_bad.seed=1"
    assert any(expected in job for job in plain)


@needs_snakemake
def test_the_engines_profiles_have_options_that_there_are():
    from snakemake.cli import get_argument_parser

    there = {option.removeprefix("--") for option in get_argument_parser()._option_string_actions}
    there |= {f"kubernetes-{option}" for option in KUBERNETES}
    for file in PROFILES:
        chosen = yaml.safe_load(file.read_text())
        assert set(chosen) <= there, (file, set(chosen) - there)
        assert chosen["executor"] == file.parent.name
        assert chosen["keep-going"] and chosen["nolock"] and chosen["rerun-incomplete"], file
    assert len(PROFILES) == 3
    slurm = yaml.safe_load((CLUSTER / "slurm" / "config.yaml").read_text())  # what answers without accounting
    assert slurm["slurm-status-command"] == "squeue" and slurm["slurm-no-account"] is True


def test_the_guide_says_what_there_is():
    guide = (CLUSTER / "README.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", guide, re.S) for line in block.splitlines()]
    commands = [line.partition("-m prehab_lib ")[2].partition(" #")[0] for line in lines if "-m prehab_lib " in line]
    assert commands
    for words in commands:
        __main__.parser().parse_args(shlex.split(words))
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake (\w+)", guide)) <= {"lab", *targets}
    for path in re.findall(r"(?:cluster|tests)/[\w./]+\w", guide):
        assert (ROOT / path).exists(), path
    subprocess.run(["sh", "-n", CLUSTER / "try_slurm.sh"], check=True)
    for file in (CLUSTER / "kubernetes").iterdir():
        assert "NOT RUN" in file.read_text(), file.name
