"""The runner: what is stored is not run again, what fails or is killed costs nothing that was there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prehab_lib import __main__, run
from prehab_lib.runs import plan
from tests.processes import alive, wait_for

PARAMETERS = "steps: int = 1  # steps\ndata_root: str = ''  # data\n"
WRITES = """\
import os, pathlib
folder = pathlib.Path(os.environ["PREHAB_RUN_DIR"])
(folder / "figures").mkdir()
(folder / "figures" / f"fig{steps}.csv").write_text(str(steps))
print(steps, os.environ["PREHAB_PROFILE"], os.environ["PREHAB_NOTEBOOK"], os.getcwd() != os.environ["PREHAB_NOTEBOOK_DIR"])
"""
BUSY = """\
import os, pathlib
pathlib.Path(os.environ["MARK"]).write_text(str(os.getpid()))
if os.environ.get("SLOW"):
    sum(range(10**13))  # gives no other thread a turn, so nothing inside the kernel can notice its parent's death
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "a repository"  # the space is meant
    (home / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(home)
    return home


def command(*words):
    return [sys.executable, "-m", "prehab_lib", "run", *words]


def output_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", []))


def test_life_of_a_profile(home, write_notebook, capsys):
    """Run, failure beside success, nothing to do, changed parameter, repaired code, good results kept."""
    good = write_notebook(home / "notebooks" / "00_good.ipynb", WRITES, parameters=PARAMETERS)
    bad = write_notebook(home / "notebooks" / "01_bad.ipynb", "print('so far')", "1 / 0")
    write_notebook(home / "notebooks" / "02_after.ipynb", "print(2)", needs=["01_bad"])
    before = {file: file.read_bytes() for file in (home / "notebooks").iterdir()}

    assert run.main("smoke") == 1
    said = capsys.readouterr().out
    assert "1 ran, 0 cached, 1 failed, 1 skipped" in said
    kept = next((home / "runs" / ".store").glob("*.failed")) / "01_bad.ipynb"
    assert f"failed: 01_bad: ZeroDivisionError: division by zero (see {kept.relative_to(home)})" in said
    assert "skipped: 02_after: it needs 01_bad" in said
    assert "so far" in kept.read_text() and "ZeroDivisionError" in kept.read_text()
    published = home / "runs" / "smoke" / "00_good"
    assert output_of(published / "00_good.ipynb") == "1 smoke 00_good True\n"
    assert "stderr" not in (published / "00_good.ipynb").read_text()
    facts = json.loads((published / "run.json").read_text())
    assert facts["params"] == {"steps": 1, "data_root": ""} and facts["error"] is None
    assert facts["threads"] >= 1 and facts["seconds"] > 0 and facts["peak_memory_mb"] > 10
    assert not (home / "runs" / "smoke" / "01_bad").exists()
    assert {file: file.read_bytes() for file in (home / "notebooks").iterdir()} == before
    assert list((home / "runs").rglob("*.part")) == []

    clock = time.monotonic()
    assert run.main("smoke", ["00"]) == 0
    assert capsys.readouterr().out == "already up to date: 1 of 1 runs are stored\n"
    assert time.monotonic() - clock < 5

    assert run.main("smoke", ["00_good"], {"steps": 2}) == 0  # its figure replaces that of the run before
    assert [file.name for file in (home / "runs" / "smoke" / "figures").iterdir()] == ["fig2.csv"]
    assert output_of(published / "00_good.ipynb").startswith("2 ")

    write_notebook(good, WRITES + "raise KeyError('late')", parameters=PARAMETERS)
    write_notebook(bad, "print('so far')")
    assert run.main("smoke") == 1
    assert "2 ran, 0 cached, 1 failed, 0 skipped" in capsys.readouterr().out
    assert output_of(published / "00_good.ipynb").startswith("2 ")  # good results survive a failing rerun
    assert (home / "runs" / "smoke" / "figures" / "fig2.csv").read_text() == "2"


def test_profiles_replace_defaults_from_yaml(home, write_notebook):
    write_notebook(home / "notebooks" / "00_a.ipynb", "1", parameters=PARAMETERS)
    write_notebook(home / "notebooks" / "01_b.ipynb", "1", parameters=PARAMETERS)
    (home / "params").mkdir()
    (home / "params" / "01_b.laptop.yaml").write_text("# why\nsteps: 7\n")
    planned = plan.runs(home, "laptop", [], {})
    assert [(r.name, r.params["steps"], bool(r.note)) for r in planned] == [("00_a", 1, True), ("01_b", 7, False)]
    assert [r.params["steps"] for r in plan.runs(home, "laptop", ["01"], {"steps": 9})] == [9]
    (home / "params" / "01_b.mine.yaml").write_text("# why\nsteps: 8\n")
    assert [r.params["steps"] for r in plan.runs(home, "mine", [], {})] == [1, 8]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["smoke", "-p", "stpes=3"], 'no parameter "stpes": did you mean "steps"?'),
        (["smoke", "-p", "steps=1.5"], "steps = 1.5"),
        (["smoke", "-p", "data_root=nowhere"], "nowhere is not a folder"),
        (["smoke", "07"], 'no notebook "07": there are 00_a'),
        (["labb"], 'unknown profile "labb"'),
    ],
)
def test_bad_words_are_refused_before_anything_is_written(home, write_notebook, capsys, words, sentence):
    write_notebook(home / "notebooks" / "00_a.ipynb", "1", parameters=PARAMETERS)
    assert __main__.main(["run", *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (home / "runs").exists()


@pytest.mark.parametrize("words", [["smoke", "-j", "0"], ["smoke", "-p", "steps"], ["smoke", "-p", "steps=[1"]])
def test_malformed_options_are_refused(home, words):
    with pytest.raises(SystemExit) as caught:
        __main__.main(["run", *words])
    assert caught.value.code == 2


def test_no_notebooks_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "__file__", str(tmp_path / "prehab_lib" / "plan.py"))
    assert __main__.main(["run", "smoke"]) == 2
    assert "run this in the repository's folder" in capsys.readouterr().err


def test_a_need_that_is_missing_or_circular_is_named(home, write_notebook):
    write_notebook(home / "notebooks" / "00_a.ipynb", "1", needs=["01_b"])
    with pytest.raises(ValueError, match="00_a needs 01_b"):
        plan.runs(home, "smoke", [], {})
    write_notebook(home / "notebooks" / "01_b.ipynb", "1", needs=["00_a"])
    with pytest.raises(ValueError, match="cannot need itself"):
        plan.runs(home, "smoke", [], {})
    write_notebook(home / "notebooks" / "01_b.ipynb", "1")
    assert [r.name for r in plan.runs(home, "smoke", ["00"], {})] == ["01_b", "00_a"]


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_killed_in_the_middle_nothing_survives_and_the_same_command_resumes(home, write_notebook, tmp_path):
    write_notebook(home / "notebooks" / "00_done.ipynb", "print('done')")
    write_notebook(home / "notebooks" / "01_slow.ipynb", BUSY)
    mark = tmp_path / "kernel"
    environment = os.environ | {"MARK": str(mark)}
    process = subprocess.Popen(command("smoke"), env=environment | {"SLOW": "1"}, stdout=subprocess.DEVNULL)
    finished = home / "runs" / "smoke" / "00_done" / "run.json"
    wait_for(lambda: finished.exists() and mark.exists() and mark.read_text())
    kernel = int(mark.read_text())
    parent = int(Path(f"/proc/{kernel}/status").read_text().split("PPid:")[1].split()[0])
    assert alive(kernel) and alive(parent)
    first = finished.stat().st_mtime_ns
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        wait_for(lambda: not alive(kernel) and not alive(parent), seconds=2)
    finally:
        if alive(kernel):
            os.kill(kernel, signal.SIGKILL)
    assert list((home / "runs" / ".store").glob("*.part"))

    done = subprocess.run(command("smoke"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 ran, 1 cached, 0 failed" in done.stdout
    assert done.stderr == ""
    assert finished.stat().st_mtime_ns == first
    assert list((home / "runs" / ".store").glob("*.part")) == []


def test_two_commands_at_once_run_it_once(home, write_notebook, tmp_path):
    counter = tmp_path / "count"
    write_notebook(
        home / "notebooks" / "00_a.ipynb", f"import time\nopen({str(counter)!r}, 'a').write('x')\ntime.sleep(1)"
    )
    pair = [subprocess.Popen(command("smoke"), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert counter.read_text() == "x"


def test_a_dead_kernel_is_a_failed_run(home, write_notebook, capsys):
    write_notebook(home / "notebooks" / "00_a.ipynb", "import os\nos.kill(os.getpid(), 9)")
    assert run.main("smoke") == 1
    assert "the kernel died" in capsys.readouterr().out
