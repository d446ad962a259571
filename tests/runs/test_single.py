"""One run of a plan file: what it needs, what it says, what it leaves, and that it outlives nobody."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from prehab_lib import __main__
from prehab_lib.runs import launch, machine, plan, single
from prehab_lib.runs.store import Store
from tests import batch
from tests.processes import alive, wait_for

PARAMETERS = "value: int = 1  # a score\n"
WRITES = """\
import json, os, pathlib
(pathlib.Path(os.environ["PREHAB_RUN_DIR"]) / "result.json").write_text(json.dumps({"value": value}))
"""
READS = """\
import json, os, pathlib
from prehab_lib import upstream
print(upstream.results("00_base"), os.environ["OMP_NUM_THREADS"])
"""
WAITS = """\
import os, pathlib, time
here = pathlib.Path(os.environ["PREHAB_NOTEBOOK_DIR"])
(here / "kernel").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "00_base.ipynb", WRITES, parameters=PARAMETERS)
    write_notebook(tmp_path / "notebooks" / "01_reads.ipynb", READS, needs=["00_base"])
    write_notebook(tmp_path / "notebooks" / "02_bad.ipynb", "print('so far')", "1 / 0")
    write_notebook(tmp_path / "notebooks" / "03_after.ipynb", "1", needs=["02_bad"])
    return tmp_path


def planned(home, **overrides) -> list[plan.Run]:
    """A plan of all notebooks, written to plan.json; overrides are parameters of the first."""
    runs = plan.runs(home, "smoke", [], {}, threads=3)
    runs[0].params.update(overrides)
    (home / "plan.json").write_text(json.dumps(plan.as_data(runs)))
    return runs


def one(name: str) -> int:
    return __main__.main(["one", "plan.json", name])


def test_runs_of_a_plan_one_by_one(home, capsys):
    planned(home)
    assert one("01_reads") == 2
    assert capsys.readouterr().err == "prehab_lib: 01_reads needs 00_base, which is not stored: run that first\n"
    assert not (home / "runs" / "smoke").exists()

    assert one("00_base") == 0
    said = capsys.readouterr().out
    assert said.startswith("started   00_base on ") and "with 3 threads\nfinished  00_base in " in said
    assert json.loads((home / "runs/smoke/00_base/run.json").read_text())["threads"] == 3

    assert one("00_base") == 0
    assert capsys.readouterr().out == "stored    00_base\n"

    # Another plan has published another result since: a notebook still reads the one of its own plan.
    planned(home, value=2)
    assert one("00_base") == 0
    planned(home)
    assert one("01_reads") == 0
    printed = json.loads((home / "runs/smoke/01_reads/01_reads.ipynb").read_text())["cells"][0]["outputs"]
    assert "".join("".join(output["text"]) for output in printed) == "{'00_base': {'value': 1}} 3\n"


def test_a_failing_run_keeps_its_notebook_and_stops_what_needs_it(home, capsys):
    runs = planned(home)
    assert one("02_bad") == 1
    said = capsys.readouterr().out
    kept = next((home / "runs" / ".store").glob("*.failed/02_bad.ipynb"))
    told = re.escape(f"ZeroDivisionError: division by zero (see {kept.relative_to(home)})\n")
    assert re.search(rf"failed    02_bad after \d+ s: {told}$", said), said
    assert "so far" in kept.read_text()
    assert one("03_after") == 2
    assert "03_after needs 02_bad, which is not stored" in capsys.readouterr().err
    assert single.summary(Store(home / "runs"), runs) == [
        "0 of 4 runs are stored",
        "  missing: 00_base",
        "  missing: 01_reads",
        f"  failed: 02_bad: ZeroDivisionError: division by zero (see {kept.relative_to(home)})",
        "  skipped: 03_after: it needs 02_bad",
    ]


@pytest.mark.parametrize(
    "words, content, sentence",
    [
        (["plan.json", "07_none"], None, 'plan.json has no run "07_none": it has 00_base, 01_reads, 02_bad, 03_after'),
        (["other.json", "00_base"], None, "there is no plan other.json: write it with python -m prehab_lib plan"),
        (["plan.json", "00_base"], "runs: [", "plan.json is no JSON: write it with python -m prehab_lib plan"),
        (["plan.json", "00_base"], '{"format": 7}', "format 7"),
    ],
)
def test_bad_words_are_one_sentence(home, capsys, words, content, sentence):
    planned(home)
    if content:
        (home / "plan.json").write_text(content)
    assert __main__.main(["one", *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (home / "runs").exists()


def test_a_full_disk_is_one_sentence(home, monkeypatch, capsys):
    planned(home)
    monkeypatch.setattr(single, "_execute", lambda *words: launch.Outcome("full"))
    assert one("00_base") == 2
    assert "no space left on" in capsys.readouterr().err
    assert not (home / "runs" / "smoke").exists()


def stored(home, run: plan.Run, key: str) -> None:
    """As if the run had been executed."""
    folder = home / "runs" / ".store" / key
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"key": key, "notebook": run.notebook.stem, "files": []}))


def test_stamps_say_what_the_store_says(home, write_notebook):
    runs, store, folder = planned(home), Store(home / "runs"), home / "stamps"
    stored(home, runs[0], launch.key_of(store, runs[0], {}))
    single.stamp(folder, "02_bad").parent.mkdir()
    single.stamp(folder, "02_bad").touch()  # left of a day when it was stored
    found = single.settle(store, runs, folder)
    assert [state.status for state in found.values()] == ["stored", "missing", "missing", "missing"]
    assert [file.name for file in folder.iterdir()] == ["00_base.done"]
    assert (home / "runs" / "smoke" / "00_base" / "run.json").is_file()  # published, though nothing ran

    write_notebook(home / "notebooks" / "00_base.ipynb", WRITES + "print(2)", parameters=PARAMETERS)
    single.settle(store, runs, folder)
    assert list(folder.iterdir()) == []


def test_no_two_runs_share_a_stamp_and_none_has_a_comma(tmp_path):
    names = ["01_a.x=1,y=2", "01_a.x=1", "01_a.x=1,y=2,z=3"]
    stamps = {single.stamp(tmp_path, name).name for name in names}
    assert len(stamps) == 3 and not any("," in stamp for stamp in stamps)


def test_two_single_runs_get_two_gpus_and_a_scheduler_is_believed(home, monkeypatch):
    store, run = Store(home / "runs"), plan.Run("a", home, "lab", {}, gpu=1)
    monkeypatch.setattr(machine, "gpus", lambda: ["4", "7"])
    for name in single.SCHEDULED:
        monkeypatch.delenv(name, raising=False)
    with single.device(store, run) as first, single.device(store, run) as second:
        assert [first, second] == ["4", "7"]
    with single.device(store, run) as again:
        assert again == "4"
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        with single.device(store, run) as given:
            assert given == "4"  # SLURM shows each job its own GPUs, perhaps under the same number
    with single.device(store, plan.Run("b", home, "lab", {})) as none:
        assert none is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_it_ends_when_what_started_it_is_killed(home, write_notebook):
    write_notebook(home / "notebooks" / "00_base.ipynb", WAITS)
    planned(home)
    words = [sys.executable, "-m", "prehab_lib", "one", "plan.json", "00_base", "--parent"]
    starts = f"import os, subprocess; subprocess.run({words!r} + [str(os.getpid())])"
    engine = subprocess.Popen([sys.executable, "-c", starts], env=batch.environment(), stderr=subprocess.DEVNULL)
    file = home / "notebooks" / "kernel"

    def started():
        assert engine.poll() is None
        return file.exists() and file.read_text()

    kernel = int(wait_for(started))
    assert alive(kernel)
    os.kill(engine.pid, signal.SIGKILL)
    engine.wait()
    try:
        wait_for(lambda: not alive(kernel), "the kernel was alive two seconds after its engine", seconds=2)
    finally:
        if alive(kernel):
            os.kill(kernel, signal.SIGKILL)
