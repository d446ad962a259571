"""What the runner promises: whole results or none, nothing done twice, no process left behind.

Its processes run a copy of the library, so that a module of it can be changed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.batch import alive, printed, wait_for

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
STEPS = "steps: int = 1  # steps\n"
WRITES = """\
import os, pathlib
from prehab_lib import budget
folder = pathlib.Path(os.environ["PREHAB_RUN_DIR"])
(folder / "result.json").write_text(str(steps))
(folder / "figures").mkdir()
(folder / "figures" / f"fig{steps}.csv").write_text("a figure")
print(steps, os.environ["PREHAB_PROFILE"], os.environ["PREHAB_NOTEBOOK"], os.environ["OMP_NUM_THREADS"])
"""
OTHER = "from prehab_lib.runs.certificate import run_dir\n(run_dir() / 'result.json').write_text('7')"
READS = """\
import os, pathlib
folder = pathlib.Path(os.environ["PREHAB_RUNS"])
print({file.parent.name: file.read_text() for file in sorted(folder.glob("*/result.json"))})
"""
BUSY = """\
import json, os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
strayed = subprocess.run(["sh", "-c", "setsid sleep 600 > /dev/null 2>&1 & echo $!"], capture_output=True, text=True)
print("from the cell", flush=True)
stage = pathlib.Path(os.environ["PREHAB_STAGES"]) / "done.json"
print("a stage was kept:", stage.exists())
stage.parent.mkdir(exist_ok=True)
stage.touch()
mark = pathlib.Path(os.environ["PREHAB_NOTEBOOK_DIR"]) / "mark"
mark.with_suffix(".new").write_text(json.dumps([os.getpid(), os.getppid(), child.pid, int(strayed.stdout)]))
mark.with_suffix(".new").rename(mark)
while not mark.with_name("seen").exists():  # IPython sends what was printed in another thread: it gets its turn here
    time.sleep(0.02)
if not mark.with_name("go").exists():
    sum(range(10**13))  # gives no other thread a turn, so nothing inside the kernel can notice its parent's death
"""


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "a repository"  # the space is meant
    (home / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "prehab_lib", home / "prehab_lib", ignore=shutil.ignore_patterns("__pycache__"))
    return home


def start(home: Path, *words: str, command: str = "run") -> subprocess.Popen:
    """The runner with the library of that folder. A shell's "&" ignores Ctrl-C, which is set right."""
    command = [sys.executable, "-m", "prehab_lib", command, "smoke", *words, "--threads", "1"]
    options = {"cwd": home, "env": os.environ | {"PYTHONPATH": str(home)}, "text": True}
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run(home: Path, *words: str, code: int = 0, command: str = "run") -> str:
    process = start(home, *words, command=command)
    said, complaint = process.communicate(timeout=120)
    assert (process.returncode, complaint if code != 2 else "") == (code, ""), said + complaint
    return said or complaint


def test_what_runs_and_what_runs_again(home, write_notebook):
    """Failure beside success, repaired, nothing to do, a parameter, a module, and what reads all results."""
    notebooks, published = home / "notebooks", home / "runs" / "smoke"
    write_notebook(notebooks / "00_audit.ipynb", READS, last=True)  # first by its name: nothing but `last` delays it
    write_notebook(notebooks / "01_a.ipynb", WRITES, parameters=STEPS)
    bad = write_notebook(notebooks / "02_bad.ipynb", "print('so far')", "1 / 0")
    write_notebook(notebooks / "03_b.ipynb", OTHER)
    before = {file: file.read_bytes() for file in notebooks.iterdir()}

    said = run(home, code=1)
    assert "smoke: 3 ran, 0 cached, 1 failed in" in said
    kept = next((home / "runs" / ".store").glob("*.failed")) / "02_bad.ipynb"
    sentence = "ZeroDivisionError: division by zero"
    assert f"\n  failed: 02_bad: {sentence} (see {kept.relative_to(home)})\n" in said
    assert re.search(rf"failed    02_bad after \d+ s: {sentence} \(see runs/.store/", said)
    assert "so far" in (home / "runs" / "smoke" / "logs" / "02_bad.log").read_text()
    assert re.search(r"started   01_a \(1 thread\)\n", said) and re.search(r"finished  01_a in \d+ s, \d+ MB\n", said)
    assert max(map(said.index, ("failed    02_bad", "finished  01_a", "finished  03_b"))) < said.index("started   00")
    assert "so far" in kept.read_text() and "ZeroDivisionError" in kept.read_text()
    assert printed(published / "01_a" / "01_a.ipynb") == "1 smoke 01_a 1\n"
    assert printed(published / "00_audit" / "00_audit.ipynb") == "{'01_a': '1', '03_b': '7'}\n"
    facts = json.loads((published / "01_a" / "run.json").read_text())
    assert facts["params"] == {"steps": 1} and facts["error"] is None and facts["threads"] == 1
    assert facts["seconds"] > 0 and facts["peak_memory_mb"] > 10
    assert not (published / "02_bad").exists() and not list((home / "runs").rglob("*.part"))
    assert {file: file.read_bytes() for file in notebooks.iterdir()} == before
    assert f"02_bad          1  no   failed: {sentence} (see" in run(home, command="plan")

    write_notebook(bad, "print('so far')")
    assert "  ran: 02_bad, 00_audit\n" in run(home).replace("00_audit, 02_bad", "02_bad, 00_audit")
    assert run(home) == "already up to date: 4 of 4 runs are stored\n"
    write_notebook(notebooks / "00_other.ipynb", READS, last=True)  # two readers do not wait for each other
    assert "  ran: 00_other\n" in run(home) and run(home) == "already up to date: 5 of 5 runs are stored\n"
    (notebooks / "00_other.ipynb").unlink()

    entry = next(home.glob("runs/.store/*/03_b.ipynb"))
    entry.write_text(entry.read_text()[:40])  # torn: it is not stored, so it runs again
    assert "03_b 1 no no" in [" ".join(line.split()) for line in run(home, command="plan").splitlines()]
    assert "  cached: 01_a, 02_bad\n" in run(home) and json.loads(entry.read_text())

    run(home, "01", "-p", "steps=2")  # its figure replaces that of the run before
    assert [file.name for file in (published / "figures").iterdir()] == ["fig2.csv"]

    module = home / "prehab_lib" / "budget.py"
    module.write_text(module.read_text() + "# changed\n")
    assert "  ran: 00_audit, 01_a\n  cached: 02_bad, 03_b\n" in run(home)
    write_notebook(notebooks / "01_a.ipynb", WRITES + "raise KeyError('late')", parameters=STEPS)
    assert "failed    01_a" in run(home, "01", code=1)
    assert (published / "figures" / "fig1.csv").is_file()  # what was published survives a failing rerun


def marked(home: Path) -> list[int]:
    """The processes of a notebook that is busy: its kernel, the unit, a child, and one that left its session."""
    mark = home / "notebooks" / "mark"
    wait_for(mark.exists)
    processes = json.loads(mark.read_text())
    mark.unlink()
    return processes


def sweep_up(processes: list[int]) -> None:
    for process in filter(alive, processes):
        os.kill(process, signal.SIGKILL)


@linux
def test_a_killed_driver_leaves_nothing_and_the_same_command_resumes(home, write_notebook):
    write_notebook(home / "notebooks" / "00_done.ipynb", "print('done')")
    write_notebook(home / "notebooks" / "01_slow.ipynb", BUSY)
    first = start(home)
    processes = marked(home)
    finished = home / "runs" / "smoke" / "00_done" / "run.json"
    try:
        wait_for(finished.exists)
        log = home / "runs" / "smoke" / "logs" / "01_slow.log"
        wait_for(lambda: "from the cell" in log.read_text(), "what a cell prints is in the log while it runs")
        (home / "notebooks" / "seen").touch()
        sentence = "prehab_lib: another driver is at work on runs/smoke: wait for it, or stop it\n"
        assert run(home, code=2) == sentence
        said = run(home, "--name", "01_slow", command="one", code=1)
        assert "failed    01_slow after 0 s: another process is at work on it" in said
        assert all(map(alive, processes))
        written = finished.stat().st_mtime_ns
        first.kill()
        first.communicate()
        wait_for(lambda: not any(map(alive, processes)), "alive two seconds after the driver", seconds=2)
    finally:
        sweep_up(processes)
    assert list((home / "runs" / ".store").glob("*.part"))

    (home / "notebooks" / "go").touch()
    assert "smoke: 1 ran, 1 cached, 0 failed" in run(home)
    assert not any(map(alive, marked(home)))  # what the notebook left running
    assert finished.stat().st_mtime_ns == written and not list((home / "runs" / ".store").glob("*.part"))
    log = (home / "runs" / "smoke" / "logs" / "01_slow.log").read_text()
    assert "a stage was kept: True" in log and not list((home / "runs" / ".store").glob("*.stages"))


@linux
def test_a_stopped_driver_ends_what_it_started_and_a_dead_kernel_is_a_failed_run(home, write_notebook):
    """Ctrl-C: one sentence, exit code 130."""
    write_notebook(home / "notebooks" / "00_a.ipynb", BUSY)
    (home / "notebooks" / "seen").touch()
    driver = start(home)
    processes = marked(home)
    try:
        driver.send_signal(signal.SIGINT)
        said = driver.communicate(timeout=30)[1]
        assert (driver.returncode, said.count("\n")) == (130, 1) and said.startswith("prehab_lib: stopped")
        wait_for(lambda: not any(map(alive, processes)), seconds=2)
    finally:
        sweep_up(processes)
    write_notebook(home / "notebooks" / "00_a.ipynb", "import os\nos.kill(os.getpid(), 9)")
    assert "failed: 00_a: the kernel died" in run(home, code=1)


ENDS = {
    "00_exit": ("import sys\nsys.exit()", "SystemExit in cell 1: what comes after it did not run"),
    "01_disk": ("open('/dev/full', 'w').write('x' * 10**6)", "OSError: [Errno 28] No space left"),
    "02_name": ("open(os.environ['PREHAB_RUN_DIR'].encode() + b'/\\xff', 'w')", r"called '\udcff': give"),
}


# What the cell prints is still on its way six seconds after its end.
LATE = """\
import sys, time
sys.stdout.flush_timeout = sys.stderr.flush_timeout = 0.1
get_ipython().kernel.iopub_thread.schedule(lambda: time.sleep(6))
"""


@linux
def test_ends_that_are_none_are_told_and_stop_no_other(home, write_notebook):
    """sys.exit() is no end, a disk of the notebook's own is not the store's; a killed unit leaves nothing."""
    for name, (source, _) in ENDS.items():
        write_notebook(home / "notebooks" / f"{name}.ipynb", f"import os\n{source}", "print('on')")
    write_notebook(home / "notebooks" / "03_good.ipynb", LATE)
    said = run(home, code=1)
    for name, (_, sentence) in ENDS.items():
        assert sentence in said and f"failed: {name}: " in said, said
    assert "1 ran, 0 cached, 3 failed" in said


@linux
def test_a_killed_unit_leaves_nothing_and_a_stopped_one_ends_with_its_driver(home, write_notebook):
    write_notebook(home / "notebooks" / "00_a.ipynb", BUSY)
    (home / "notebooks" / "seen").touch()
    for killed in ("unit", "driver"):
        driver = start(home)
        processes = marked(home)
        try:
            os.kill(processes[1], signal.SIGKILL if killed == "unit" else signal.SIGSTOP)
            if killed == "driver":
                driver.kill()
            said = driver.communicate(timeout=30)[0]
            assert killed == "driver" or "its process was killed (signal 9)" in said
            wait_for(lambda left=processes: not any(map(alive, left)), seconds=5)
        finally:
            sweep_up(processes)


def test_runs_go_on_where_nobody_reads_what_is_said(home, write_notebook):
    for name in ("00_a", "01_b"):
        write_notebook(home / "notebooks" / f"{name}.ipynb", "print('done')")
    driver = start(home, "-j", "1")
    driver.stdout.readline()
    driver.stdout.close()
    assert driver.stderr.read() == "" and driver.wait(60) == 0
    assert len(list((home / "runs" / "smoke").glob("*/run.json"))) == 2
