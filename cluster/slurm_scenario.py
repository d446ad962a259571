"""What happens to a profile on a real SLURM: `python -m cluster.slurm_scenario FOLDER`, started by cluster/try_slurm.sh.

Each step asserts what it says. Not collected by pytest: it needs a SLURM whose jobs belong to nobody else.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests import batch
from tests.batch import alive, wait_for

ROOT = Path(__file__).resolve().parents[1]
CLOCK = time.monotonic()


def say(line: str) -> None:
    print(f"{time.monotonic() - CLOCK:5.0f} s  {line}", flush=True)


def call(home: Path, *words, code: int = 0) -> str:
    """What a command of this Python's said in that folder."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=home, env=batch.environment(), capture_output=True, text=True)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def snakemake(target: str) -> list:
    words = ["snakemake", "-s", ROOT / "cluster" / "Snakefile", "--workflow-profile", ROOT / "cluster" / "slurm"]
    words += ["--slurm-init-seconds-before-status-checks", "3", "--set-resources", "run:mem_mb=900"]
    return [*words, "--config", "profile=laptop", "words=['--threads ''1''']", "--", target]


def start(home: Path) -> subprocess.Popen:
    """Snakemake on SLURM."""
    command, pipes = [sys.executable, "-m", *snakemake("runs")], {"stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=home, env=batch.environment(), stderr=subprocess.STDOUT, **pipes)


def finish(process: subprocess.Popen, code: int) -> str:
    """The table of runs at the end of what Snakemake said."""
    said = process.communicate(timeout=600)[0].decode()
    assert process.returncode == code, said
    return said[said.rindex("run ") :].partition("Complete log")[0].strip()


def kernel(home: Path) -> int:
    """The process of the kernel of 04_slow, once it is at work."""
    file = home / "kernel.pid"
    pid = int(wait_for(lambda: file.exists() and file.read_text(), "the kernel of 04_slow", 120))
    file.unlink()
    return pid


def dies(pid: int, what: str) -> None:
    clock = time.monotonic()
    wait_for(lambda: not alive(pid), f"{what}: the kernel was alive after two seconds", 2)
    say(f"{what}: the kernel was gone after {time.monotonic() - clock:.1f} s")


def jobs() -> list[str]:
    """SLURM's numbers of the jobs at work on 04_slow: Snakemake writes the run into the comment."""
    listed = subprocess.run(["squeue", "-h", "-t", "R,PD", "-o", "%i %k"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.endswith("04_slow")]


def inner_snakemake(pid: int) -> int:
    """The Snakemake inside a job, above its kernel."""
    while "snakemake" not in Path(f"/proc/{pid}/cmdline").read_text():
        pid = int(Path(f"/proc/{pid}/status").read_text().split("PPid:")[1].split()[0])
    return pid


def main(folder: Path) -> None:
    home, other = batch.make(folder / "slurm"), batch.make(folder / "pool")
    wait = home / "wait"
    wait.touch()
    process = start(home)
    pid = kernel(home)
    subprocess.run(["scancel", *jobs()], check=True)
    dies(pid, "scancel of a job")
    said = finish(process, code=1)
    say("first call, one run failing and one cancelled:\n" + said)
    assert said.count("  yes") == 2 and "failed: RuntimeError: planted (see runs/.store/" in said
    assert batch.executed(home) == ["01_grid one 0", "01_grid three 0", "02_bad one 0", "04_slow one 0"]

    (home / "broken").unlink()
    process = start(home)
    pid = kernel(home)
    os.kill(inner_snakemake(pid), signal.SIGKILL)
    dies(pid, "kill -9 of the Snakemake inside a job")
    say("second call, the failure repaired, one killed:\n" + finish(process, code=1))
    assert batch.executed(home) == ["02_bad one 0", "04_slow one 0"]

    process = start(home)
    pid = kernel(home)
    process.kill()
    process.communicate()
    time.sleep(2)
    assert alive(pid)
    say("kill -9 of Snakemake itself: its job goes on, for it is SLURM's")
    finish(start(home), code=1)
    log = max((home / ".snakemake" / "slurm_logs").rglob("*.log"), key=lambda file: file.stat().st_mtime).read_text()
    assert "failed    04_slow after 0 s: another process is at work on it" in log and alive(pid), log
    say("the same command meanwhile: the second job of that run ends, as another process is at work on it")
    wait.unlink()
    wait_for(lambda: not jobs(), "the first job", 60)
    assert batch.executed(home) == ["04_slow one 0"]

    clock = time.monotonic()
    call(home, *snakemake("runs"))
    say(f"the same command afterwards, with nothing left to do: {time.monotonic() - clock:.1f} s")
    call(home, *snakemake("last"))
    assert batch.executed(home) == []
    say("what comes last:\n" + call(home, "prehab_lib", "plan", "laptop", "--threads", "1"))

    (other / "broken").unlink()
    call(other, "prehab_lib", "run", "laptop", "-j", "2", "--threads", "1")
    ours, theirs = batch.records(home), batch.records(other)
    assert ours == theirs and len(ours) == 5, (ours, theirs)
    say(f"SLURM and the pool: {len(ours)} runs with equal records, without {', '.join(sorted(batch.PASSING))}")
    say("all as it should be")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
