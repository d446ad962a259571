"""The store: nothing torn, whatever happens to the disk."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prehab_lib import __main__
from prehab_lib.runs import plan, store, unit


def test_another_error_of_the_disk_is_not_called_a_full_one(tmp_path, monkeypatch):
    def execute(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(unit, "_execute", execute)
    for name in ("PREHAB_RUN_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, "restored after the test")
    task = {"runs": str(tmp_path), "key": "k" * 16, "params": {}, "notebook": "00_a.ipynb"}
    with pytest.raises(OSError, match="Input/output"):
        unit.work_on(task)
    assert [path.suffix for path in (tmp_path / ".store").iterdir()] == [".lock"]


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


def test_a_full_disk_is_one_sentence(monkeypatch, capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "runs")

    monkeypatch.setattr(plan, "home", full)
    assert __main__.main(["run", "smoke"]) == 2
    said = capsys.readouterr().err
    assert said == "prehab_lib: no space left on runs: free some and run the same command again\n"


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
    assert {path.suffix for path in (tiny_disk / "runs" / ".store").iterdir()} == {".lock"}


def resize(folder, size: str):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


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


def test_work_folders_of_killed_runs_are_swept_but_not_those_at_work(tmp_path):
    kept = store.Store(tmp_path)
    for key in ("dead", "alive"):
        kept.begin(key)
    with kept.hold_run("alive"):
        other = "from prehab_lib.runs.store import Store; Store('.').sweep()"
        subprocess.run([sys.executable, "-c", other], cwd=tmp_path, check=True)
    assert [part.name for part in kept.folder.glob("*.part")] == ["alive.part"]


def publishable(kept: store.Store, key: str, notebook: str, *names: str) -> None:
    part = kept.begin(key)
    for name in names:
        (part / name).parent.mkdir(exist_ok=True)
        (part / name).write_text(key)
    (part / "run.json").write_text(json.dumps({"key": key, "notebook": notebook, "files": names}))
    kept.finish(key, good=True)


def test_a_stored_run_is_published_under_whatever_name_the_plan_gives_it(tmp_path):
    """The same parameters with and without a grid share a key; each name has its files, the figures apart."""
    kept = store.Store(tmp_path)
    publishable(kept, "key", "04_bert", "figures/a.png")
    for name in ("04_bert", "04_bert.cola"):
        kept.publish("key", "lab", name)
    assert sorted(files(tmp_path / "lab")) == [
        "04_bert.cola/run.json",
        "04_bert/run.json",
        "figures/04_bert.cola/a.png",
        "figures/a.png",
    ]


def test_what_an_older_result_left_goes(tmp_path):
    kept = store.Store(tmp_path)
    publishable(kept, "old", "00_a", "figures/a.png", "figures/b.png")
    publishable(kept, "new", "00_a", "figures/b.png")
    for key in ("old", "new"):
        kept.publish(key, "lab", "00_a")
    assert sorted(files(tmp_path / "lab")) == ["00_a/run.json", "figures/b.png"]
    assert files(tmp_path / "lab")["figures/b.png"] == b"new"
