"""What happens to a plan on a real SLURM: `python -m tests.slurm_scenario FOLDER [--real]`, started by cluster/try_slurm.sh.

Each step asserts what it says. Not collected by pytest: it needs a SLURM whose jobs belong to nobody else.
"""

import argparse
import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests import batch
from tests.processes import alive

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = [sys.executable, "-m", "prehab_lib"]
QUICK = ["--slurm-init-seconds-before-status-checks", "3", "--set-resources", "run:mem_mb=900"]
CLOCK = time.monotonic()


def say(line: str) -> None:
    print(f"{time.monotonic() - CLOCK:5.0f} s  {line}", flush=True)


def until(condition, what: str, seconds: float = 120):
    """Wait for a condition; returns its value and the seconds it took."""
    started = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - started < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return value, time.monotonic() - started


class Repository:
    """A folder with notebooks, and commands in it."""

    def __init__(self, home: Path):
        self.home = home
        self.calls = 0

    def command(self, *words, code: int = 0) -> str:
        done = subprocess.run(words, cwd=self.home, env=batch.environment(), capture_output=True, text=True)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def plan(self, profile: str, *words) -> None:
        self.command(*LIBRARY, "plan", profile, *words, "--threads", "1", "--json", "plan.json")

    def everything(self) -> str:
        """What `make cluster` does."""
        words = [sys.executable, ROOT / "cluster" / "run.py", "laptop", "slurm", "--threads", "1", "--", *QUICK]
        return self.command(*words)

    def snakemake(self) -> subprocess.Popen:
        """Start Snakemake on SLURM; what it says goes to the file `said`."""
        self.calls += 1
        self.said = self.home / f"snakemake-{self.calls}.log"
        words = [sys.executable, "-m", "snakemake", "-s", ROOT / "cluster" / "Snakefile"]
        words += ["--workflow-profile", ROOT / "cluster" / "slurm", *QUICK, "--config", "plan=plan.json", "--", "runs"]
        with self.said.open("w") as said:
            return subprocess.Popen(words, cwd=self.home, env=batch.environment(), stdout=said, stderr=said)

    def finish(self, process: subprocess.Popen, code: int = 0) -> str:
        process.wait(timeout=600)
        said = self.said.read_text()
        assert process.returncode == code, said
        return said

    def kernel(self, but: int = 0) -> int:
        """The process of the kernel of 04_slow, once it is at work."""
        file = self.home / "kernel.pid"
        pid, _ = until(lambda: file.exists() and int(file.read_text() or 0), "the kernel of 04_slow")
        until(lambda: pid != but and alive(pid), "the kernel of 04_slow")
        file.unlink()
        return pid


def jobs(of: str = "") -> list[str]:
    """SLURM's numbers of the jobs at work whose comment, written by Snakemake, ends so."""
    listed = subprocess.run(["squeue", "-h", "-t", "R,PD", "-o", "%i %k"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.endswith(of)]


def ancestors(pid: int) -> list[tuple[int, str]]:
    """Process and command line of each parent, nearest first."""
    found = []
    while pid > 1:
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.split("PPid:")[1].split()[0])
        found.append((pid, Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")))
    return found


def dies(pid: int, what: str, seconds: float = 2.0) -> None:
    _, took = until(lambda: not alive(pid), f"death of the kernel after {what}", seconds)
    say(f"{what}: the kernel was gone after {took:.1f} s")


def stored(said: str) -> str:
    """The summary at the end of what Snakemake said: the line that counts, and those below it."""
    lines = said.splitlines()
    last = max(number for number, line in enumerate(lines) if line.endswith("runs are stored"))
    return "\n".join([lines[last], *(line for line in lines[last + 1 :] if line.startswith("  "))])


@contextmanager
def waiting(there: Repository):
    """While this lasts, 04_slow does not end."""
    flag = there.home / "wait"
    flag.touch()
    try:
        yield
    finally:
        flag.unlink(missing_ok=True)


def through_snakemake(there: Repository) -> None:
    """One run fails, one is killed, the same command does what is missing; its own death and its jobs' deaths."""
    there.plan("laptop")
    with waiting(there):
        process = there.snakemake()
        kernel = there.kernel()
        subprocess.run(["scancel", *jobs(of="04_slow")], check=True)
        dies(kernel, "scancel of a job")
        said = stored(there.finish(process, code=1))
    say("first call, one run failing and one killed:\n" + said)
    assert "3 of 7 runs are stored" in said and "failed: 02_bad: RuntimeError: planted (see runs/.store/" in said
    assert "skipped: 03_after: it needs 02_bad" in said and "missing: 04_slow" in said
    done = ["00_base one 0", "01_grid one 0", "01_grid three 0", "02_bad one 0", "04_slow one 0"]
    assert batch.executed(there.home) == done

    (there.home / "broken").unlink()
    with waiting(there):
        process = there.snakemake()
        kernel = there.kernel(but=kernel)
        parents = ancestors(kernel)
        job_step = next(pid for pid, command in parents if "snakemake" in command)
        os.kill(job_step, signal.SIGKILL)
        dies(kernel, "kill -9 of the Snakemake inside a job")
        said = stored(there.finish(process, code=1))
    say("second call, the failure repaired, one killed again:\n" + said)
    assert "5 of 7 runs are stored" in said
    assert batch.executed(there.home) == ["02_bad one 0", "03_after one 0", "04_slow one 0"]

    with waiting(there):
        process = there.snakemake()
        kernel = there.kernel(but=kernel)
        process.kill()
        process.wait()
        time.sleep(2)
        assert alive(kernel) and len(jobs(of="04_slow")) == 1
        say("kill -9 of Snakemake itself: its job goes on, for it is SLURM's")
        process = there.snakemake()
        until(lambda: len(jobs(of="04_slow")) == 2, "the second job of the same run")
        say("the same command again: a second job of that run, which waits for the first")
    said = stored(there.finish(process))
    say("third call:\n" + said)
    assert "6 of 7 runs are stored" in said and "missing: 10_audit" in said
    assert batch.executed(there.home) == ["04_slow one 0"]

    there.everything()
    assert batch.executed(there.home) == [] and (there.home / "runs/laptop/10_audit/run.json").is_file()
    clock = time.monotonic()
    said = there.everything()
    say(f"nothing to do: {time.monotonic() - clock:.1f} s")
    assert "7 of 7 runs are stored" in said and "Building DAG" not in said


def death_of_a_step(there: Repository) -> None:
    """kill -9 of slurmstepd, SLURM's own parent of a job's processes: what is left, and who ends it."""
    there.plan("laptop", "04", "-p", "seed=7")
    with waiting(there):
        process = there.snakemake()
        kernel = there.kernel()
        parents = ancestors(kernel)
        os.kill(next(pid for pid, command in parents if command.startswith("slurmstepd")), signal.SIGKILL)
        process.kill()
        process.wait()
        time.sleep(2)
        left = alive(kernel)
        say(f"kill -9 of slurmstepd: the kernel was {'alive' if left else 'gone'} after 2 s")
        if left:
            subprocess.run(["scancel", *jobs(of="04_slow")], check=True)
            try:
                dies(kernel, "scancel after that", 40)
            except AssertionError:
                say("scancel after that did not reach it within 40 s: it would have gone on to its end")
        for command in Path("/proc").glob(
            "[0-9]*/cmdline"
        ):  # what SLURM has lost: those of the step, and who waits for it
            with suppress(OSError):
                if int(command.parent.name) == kernel or str(there.home) in command.read_text():
                    os.kill(int(command.parent.name), signal.SIGKILL)


def through_an_array(there: Repository) -> None:
    """Two shards, then what comes last; no engine."""
    script = [str(ROOT / "cluster" / "slurm" / "array.sh"), "laptop", "--threads", "1"]
    size = ["--mem=1000", "--cpus-per-task=1", f"--export=ALL,PYTHON={sys.executable}"]
    there.command("sbatch", "--wait", "--array=0-1", *size, *script)
    done = batch.executed(there.home)
    assert len(done) == len(set(done)) == 6, done
    there.command("sbatch", "--wait", *size, *script)
    assert batch.executed(there.home) == [] and (there.home / "runs/laptop/10_audit/run.json").is_file()
    say("a job array of two shards: 6 runs once each, then the one that comes last")


def same(one: Repository, other: Repository, profile: str, names: str) -> None:
    ours, theirs = batch.records(one.home, profile), batch.records(other.home, profile)
    for name in ours.keys() | theirs.keys():
        for part in ("facts", "printed"):
            mine, others = (json.dumps(one[name][part], indent=1).splitlines() for one in (ours, theirs))
            assert mine == others, f"{names}, {name}:\n" + "\n".join(
                difflib.unified_diff(mine, others, lineterm="", n=1)
            )
    say(f"{names}: {len(ours)} runs with equal records, without {', '.join(sorted(batch.PASSING))}")


def small(folder: Path) -> None:
    there, array, pool = (Repository(folder / name) for name in ("snakemake", "array", "pool"))
    for repository in (there, array, pool):
        batch.make(repository.home, waits=True)
    through_snakemake(there)
    for repository in (array, pool):
        (repository.home / "broken").unlink()
    through_an_array(array)
    pool.command(*LIBRARY, "run", "laptop", "-j", "2", "--threads", "1")
    same(there, pool, "laptop", "Snakemake on SLURM and the pool")
    same(array, pool, "laptop", "job array and the pool")
    death_of_a_step(there)


def real(folder: Path) -> None:
    """Two notebooks of this repository, at their defaults."""
    there, pool = Repository(folder / "snakemake"), Repository(folder / "pool")
    for repository in (there, pool):
        (repository.home / "notebooks").mkdir(parents=True)
        for notebook in ("00_start_here", "01_surrogates"):
            shutil.copy(ROOT / "notebooks" / f"{notebook}.ipynb", repository.home / "notebooks")
    there.plan("smoke")
    say("two notebooks through SLURM:\n" + stored(there.finish(there.snakemake())))
    pool.command(*LIBRARY, "run", "smoke", "-j", "2", "--threads", "1")
    same(there, pool, "smoke", "Snakemake on SLURM and the pool")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("folder", type=Path)
    words.add_argument("--real", action="store_true")
    chosen = words.parse_args()
    (real if chosen.real else small)(chosen.folder)
    say("all as it should be")


if __name__ == "__main__":
    main()
