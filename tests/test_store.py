"""The store: nothing torn, whatever happens to the disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prehab_lib import __main__, run, store, unit


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
    def full(*_):
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


def test_work_folders_of_killed_runs_are_swept_but_not_those_at_work(tmp_path):
    kept = store.Store(tmp_path)
    for key in ("dead", "alive"):
        kept.begin(key)
    with kept.lock("alive"):
        other = "from prehab_lib.store import Store; Store('.').sweep()"
        subprocess.run([sys.executable, "-c", other], cwd=tmp_path, check=True)
    assert [part.name for part in kept.folder.glob("*.part")] == ["alive.part"]
