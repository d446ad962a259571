"""Drivers of one store, as processes: killed, two at once, and what a run prints while it is at work."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from prehab_lib import __main__
from tests.processes import alive, wait_for

termios = pytest.importorskip("termios")  # no such terminals on Windows

BUSY = """\
import json, os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "600"])
strayed = subprocess.run(["sh", "-c", "setsid sleep 600 > /dev/null 2>&1 & echo $!"], capture_output=True, text=True)
mark = pathlib.Path(os.environ["MARK"])
mark.with_suffix(".new").write_text(json.dumps([os.getpid(), os.getppid(), child.pid, int(strayed.stdout)]))
mark.with_suffix(".new").rename(mark)
while not pathlib.Path(os.environ["GO"]).exists():
    time.sleep(0.05)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    return tmp_path


def drive(*words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "prehab_lib", "run", "smoke", *words], stdout=subprocess.PIPE, text=True
    )


def marked(home) -> list[int]:
    mark = home / "mark"
    wait_for(mark.exists)
    processes = json.loads(mark.read_text())
    mark.unlink()
    return processes


def sweep_up(processes: list[int]) -> None:
    for process in processes:
        if alive(process):
            os.kill(process, signal.SIGKILL)


@linux
def test_a_killed_driver_leaves_nothing_and_one_that_waits_takes_its_run_over(home, write_notebook):
    """Killed: the unit, its kernel, the notebook's child, and a grandchild that left its session."""
    write_notebook(home / "notebooks" / "00_a.ipynb", BUSY)
    first = drive("--shard", "0/1")
    processes = marked(home)
    second = drive()
    try:
        lines = iter(second.stdout.readline, "")
        assert next(line for line in lines if line.startswith("waiting")) == (
            f"waiting   00_a: process {first.pid} on {socket.gethostname()} has it\n"
        )
        assert all(map(alive, processes)) and not (home / "mark").exists()
        first.send_signal(signal.SIGKILL)
        first.communicate()
        wait_for(lambda: not any(map(alive, processes)), seconds=2)
        others = marked(home)
        assert not set(others) & set(processes)
        (home / "go").touch()
        rest = second.communicate(timeout=60)[0]
        assert second.returncode == 0 and "1 ran, 0 cached, 0 failed" in rest
        wait_for(lambda: not any(map(alive, others)), seconds=2)  # what the notebook left running, too
    finally:
        second.kill()
        sweep_up(processes)
    assert [path.name for path in (home / "runs" / ".store").iterdir() if path.suffix == ".part"] == []


@linux
def test_a_stopped_driver_ends_what_it_started(home, write_notebook):
    """Ctrl-C: one sentence, exit code 130."""
    write_notebook(home / "notebooks" / "00_a.ipynb", BUSY)
    driver = subprocess.Popen(
        [sys.executable, "-m", "prehab_lib", "run", "smoke"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's "&" has it ignored
    )
    processes = marked(home)
    try:
        driver.send_signal(signal.SIGINT)
        said = driver.communicate(timeout=30)[1]
        assert driver.returncode == 130 and said.startswith("prehab_lib: stopped") and said.count("\n") == 1
        assert not any(map(alive, processes))
    finally:
        sweep_up(processes)


LOGGED = """\
import os, pathlib, sys, time
print("from the cell")
os.write(2, b"from a library\\n")
while not pathlib.Path(os.environ["GO"]).exists():
    time.sleep(0.05)
"""


def read_terminal(end: int) -> str:
    """All that a process wrote to its terminal, whose other end this is."""
    said = b""
    with contextlib.suppress(OSError):  # Linux says so when the process is gone
        while chunk := os.read(end, 4096):
            said += chunk
    os.close(end)
    return said.decode()


@linux
def test_what_a_run_prints_is_in_its_log_while_it_works_and_named_when_it_fails(home, write_notebook, capsys):
    write_notebook(home / "notebooks" / "00_a.ipynb", LOGGED, "1 / 0")
    end, terminal = os.openpty()
    shown = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    termios.tcsetwinsize(end, (24, 100))
    driver = subprocess.Popen([sys.executable, "-m", "prehab_lib", "run", "smoke"], stdout=terminal, env=shown)
    os.close(terminal)
    log = home / "runs" / "smoke" / "logs" / "00_a.log"
    try:
        wait_for(lambda: log.is_file() and "from the cell" in log.read_text() and "from a library" in log.read_text())
        assert re.match(r"\d\d:\d\d:\d\d cell 1 of 2\n", log.read_text()) and driver.poll() is None
        time.sleep(1)
        (home / "go").touch()
        said = read_terminal(end)
        assert driver.wait(60) == 1
    finally:
        driver.kill()
    assert re.search(r"0/1 .*, 00_a 1/2 0:\d\d\]", said)  # the bar: no run of 1 is done, its first cell of 2 is at work
    assert re.search(
        r"failed    00_a after \d+ s: ZeroDivisionError: division by zero; log: runs/smoke/logs/00_a.log", said
    )
    assert "cell 2 of 2" in log.read_text()

    write_notebook(home / "notebooks" / "00_a.ipynb", "print('anew')")
    assert __main__.main(["run", "smoke"]) == 0
    assert "anew" in log.read_text() and "from the cell" not in log.read_text()
    assert "log" not in capsys.readouterr().out
