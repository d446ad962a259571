"""The store: nothing torn, whatever happens to the disk."""

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prehab_lib import __main__, run
from prehab_lib.runs import store, unit
from tests.profiles import enter, vit_claims, vit_records, write_run


@pytest.fixture
def home(tmp_path):
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def small_task(home) -> dict:
    task = {"runs": str(home / "runs"), "key": "k" * 16, "name": "00_a", "profile": "smoke", "params": {}}
    return task | {"notebook": str(home / "notebooks" / "00_a.ipynb"), "threads": 1, "gpu": None, "pool": os.getpid()}


@pytest.fixture
def environment_kept():
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("where", ["in a cell", "in the runner"])
def test_a_full_disk_leaves_nothing_torn(home, monkeypatch, where, environment_kept):
    def execute(*_):
        if where == "in a cell":
            return "OSError: [Errno 28] No space left on device"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(unit, "_execute", execute)
    assert unit.work_on(small_task(home))["status"] == "full"
    assert [path.suffix for path in (home / "runs" / ".store").iterdir()] == [".lock"]


def test_another_error_of_the_disk_is_not_called_a_full_one(home, monkeypatch, environment_kept):
    def execute(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(unit, "_execute", execute)
    with pytest.raises(OSError, match="Input/output"):
        unit.work_on(small_task(home))


def test_a_full_disk_while_publishing_keeps_the_old_files(tmp_path, monkeypatch):
    kept = store.Store(tmp_path)

    def publish(key: str, text: str):
        part = kept.begin(key)
        (part / "result.json").write_text(text)
        (part / "run.json").write_text(json.dumps({"key": key, "files": ["result.json"]}))
        kept.finish(key, good=True)
        kept.publish(key, "smoke", "00_a")

    def full(source, target):
        Path(target).write_text("torn")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    publish("old", "old")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(store.shutil, "copyfile", full)
        publish("new", "new")
    folder = tmp_path / "smoke" / "00_a"
    assert sorted(path.name for path in folder.iterdir()) == ["result.json", "run.json"]
    assert (folder / "result.json").read_text() == "old"
    kept.publish("new", "smoke", "00_a")
    assert (folder / "result.json").read_text() == "new"


@pytest.mark.parametrize("error", [store.no_space("runs"), OSError(errno.ENOSPC, "No space left on device", "runs")])
def test_a_full_disk_is_one_sentence(monkeypatch, capsys, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(run, "main", full)
    assert __main__.main(["run", "smoke"]) == 2
    assert capsys.readouterr().err == "prehab_lib: no space left on runs: free some and run the same command again\n"


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.name == "nt" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(tiny_disk, write_notebook, monkeypatch, capsys):
    fill = "import os, pathlib\n(pathlib.Path(os.environ['PREHAB_RUN_DIR']) / 'big').write_bytes(bytes(2**22))"
    write_notebook(tiny_disk / "notebooks" / "00_a.ipynb", fill)
    monkeypatch.chdir(tiny_disk)
    assert __main__.main(["run", "smoke"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("prehab_lib: no space left on ") and said.count("\n") == 1
    assert [path.suffix for path in (tiny_disk / "runs" / ".store").iterdir()] == [".lock"]


def resize(folder, size: str):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder):
    """Leave no room at all."""
    with contextlib.suppress(OSError), (folder / "filled").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def files(folder) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def told_once(capsys) -> bool:
    said = capsys.readouterr().err
    return said.startswith("prehab_lib: no space left on ") and said.count("\n") == 1


def test_a_disk_that_is_full_when_a_run_is_published(tiny_disk, write_notebook, monkeypatch, capsys):
    """The run is stored and stays so; what was published before it stands; with more room it is published."""
    big = "import os, pathlib\n(pathlib.Path(os.environ['PREHAB_RUN_DIR']) / 'big').write_bytes(size * 2**20 * b'x')"
    parameters = "size: int = 1  # 2**20 bytes\n"
    write_notebook(tiny_disk / "notebooks" / "00_a.ipynb", big, parameters=parameters)
    monkeypatch.chdir(tiny_disk)
    resize(tiny_disk, "12m")
    assert __main__.main(["run", "smoke"]) == 0
    place = tiny_disk / "runs" / "smoke" / "00_a"
    before = files(place)
    assert __main__.main(["run", "smoke", "-p", "size=5"]) == 2
    assert told_once(capsys) and files(place) == before
    resize(tiny_disk, "30m")
    assert __main__.main(["run", "smoke", "-p", "size=5"]) == 0
    assert "already up to date: 1 of 1" in capsys.readouterr().out
    assert len(files(place)["big"]) == 5 * 2**20 and json.loads(files(place)["run.json"])["params"] == {"size": 5}


def test_a_full_disk_and_the_smaller_files(tiny_disk, monkeypatch, capsys):
    """A plan, a report with its tables, the table of all records, the start of a run: each old or new, never half."""
    enter(tiny_disk, monkeypatch)
    resize(tiny_disk, "30m")
    for words in (["report", "laptop"], ["plan", "smoke", "--json", "plan.json"]):
        assert __main__.main(words) == 0
    more = vit_records() + [record | {"method": f"other{n}"} for n in range(40) for record in vit_records()]
    write_run(tiny_disk, "03_vit", more, vit_claims())
    (tiny_disk / "params").mkdir()
    (tiny_disk / "params" / "03_vit.smoke.yaml").write_text("# why\n")
    capsys.readouterr()
    fill(tiny_disk)
    before = files(tiny_disk)
    for words in (["report", "laptop"], ["plan", "smoke", "--json", "plan.json"], ["run", "smoke"]):
        assert __main__.main(words) == 2, words
        assert told_once(capsys), words
    after = {name: content for name, content in files(tiny_disk).items() if not name.endswith(".lock")}
    assert {name: content for name, content in after.items() if not name.endswith(".log")} == before


def test_work_folders_of_killed_runs_are_swept_but_not_those_at_work(tmp_path):
    kept = store.Store(tmp_path)
    for key in ("dead", "alive"):
        kept.begin(key)
    with kept.lock("alive"):
        other = "from prehab_lib.runs.store import Store; Store('.').sweep()"
        subprocess.run([sys.executable, "-c", other], cwd=tmp_path, check=True)
    assert [part.name for part in kept.folder.glob("*.part")] == ["alive.part"]
