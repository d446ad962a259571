"""The store: nothing torn, whatever happens to the disk."""

import errno
import json
import os
import subprocess
import sys

import pytest

from prehab_lib import __main__
from prehab_lib.runs import plan, pool, store, unit
from prehab_lib.runs.inputs import digest


def test_another_error_of_the_disk_is_not_called_a_full_one(tmp_path, monkeypatch):
    def execute(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(unit, "_execute", execute)
    for name in ("PREHAB_RUN_DIR", "PREHAB_STAGES", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, "restored after the test")
    task = {"runs": str(tmp_path), "key": "k" * 16, "params": {}, "notebook": "00_a.ipynb"}
    with pytest.raises(OSError, match="Input/output"):
        unit.work_on(task)
    assert [path.suffix for path in (tmp_path / ".store").iterdir()] == [".lock"]


def stored(kept: store.Store, key: str, notebook: str, *names: str, good: bool = True) -> None:
    """A finished run with these files, its key in each."""
    part = kept.begin(key)
    for name in names:
        (part / name).parent.mkdir(exist_ok=True)
        (part / name).write_text(key)
    facts = {"key": key, "notebook": notebook, "files": names, "error": None if good else "planted"}
    facts["sha256"] = {name: digest(part / name) for name in names}
    (part / "run.json").write_text(json.dumps(facts))
    kept.finish(key, good)


def replaced(folder, *content: str) -> None:
    """By a file with this content, or by an empty folder."""
    store.remove(folder)
    folder.write_text(*content) if content else folder.mkdir()


TORN = ["", '{"key": "k', "[]", "{}", "null", "[" * 9999]
TORN += ['{"key": "other", "files": []}', '{"key": "k", "files": ["none"]}']
DAMAGES = [replaced, store.remove, lambda folder: replaced(folder, "a file")]
DAMAGES += [lambda folder: replaced(folder / "00_a.ipynb")]
DAMAGES += [lambda folder, text=text: (folder / "run.json").write_text(text) for text in TORN]
DAMAGES += [lambda folder, name=name: store.remove(folder / name) for name in ("run.json", "00_a.ipynb", "figures")]
DAMAGES += [lambda folder, name=name: (folder / name).write_text("\0") for name in ("00_a.ipynb", "figures/a.png")]


def test_a_damaged_entry_is_not_stored_and_is_replaced(tmp_path):
    """So is what was kept of a failure, and what was published."""
    kept, names = store.Store(tmp_path), ("00_a.ipynb", "figures/a.png")
    for number, damage in enumerate(DAMAGES):
        for place, good in ((kept.failed("k"), False), (kept.done("k"), True)):
            stored(kept, "k", "00_a", *names, good=good)
            assert pool.found(kept, "k").status == ("ran" if good else "failed") and bool(kept.stored("k")) == good
            damage(place)
            assert pool.found(kept, "k") is None and not kept.stored("k"), number
        stored(kept, "k", "00_a", *names)
        assert kept.stored("k"), number
        kept.publish("k", "smoke", "00_a")
        (tmp_path / "smoke" / "figures" / "a.png").write_text("")
        (tmp_path / "smoke" / "00_a" / "run.json").write_text(TORN[number % len(TORN)])
        kept.publish("k", "smoke", "00_a")
        assert files(tmp_path / "smoke").items() >= {"figures/a.png": b"k"}.items() and kept.stored("k")
        assert json.loads(files(tmp_path / "smoke")["00_a/run.json"])["notebook"] == "00_a"
        store.remove(kept.done("k"))


def files(folder) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_full_disk_keeps_the_old_files_and_what_an_older_result_left_goes(tmp_path, monkeypatch, capsys):
    kept = store.Store(tmp_path)
    stored(kept, "old", "00_a", "result.json", "figures/a.png", "figures/b.png")
    stored(kept, "new", "00_a", "result.json", "figures/b.png")

    def full(source="", target=tmp_path / "runs"):
        target.write_text("torn")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    kept.publish("old", "smoke", "00_a")
    before = files(tmp_path / "smoke")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="No space"):
        broken.setattr(store.shutil, "copyfile", full)
        kept.publish("new", "smoke", "00_a")
    assert files(tmp_path / "smoke") == before and before["00_a/result.json"] == b"old"
    kept.publish("new", "smoke", "00_a")
    after = files(tmp_path / "smoke")
    assert sorted(after) == ["00_a/result.json", "00_a/run.json", "figures/b.png"]
    assert after["00_a/result.json"] == after["figures/b.png"] == b"new"
    monkeypatch.setattr(plan, "home", full)
    assert __main__.main(["run", "smoke"]) == 2
    said = f"prehab_lib: no space left on {tmp_path / 'runs'}: free some and run the same command again\n"
    assert capsys.readouterr().err == said


@pytest.fixture
def tiny_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.name == "nt" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full(tiny_disk, write_notebook, monkeypatch, capsys):
    """One sentence; what is stored and published stays; with more room the same command goes on."""
    big = "import os, pathlib\n(pathlib.Path(os.environ['PREHAB_RUN_DIR']) / 'big').write_bytes(size * 2**20 * b'x')"
    write_notebook(tiny_disk / "notebooks" / "00_a.ipynb", big, parameters="size: int = 1  # 2**20 bytes\n")
    monkeypatch.chdir(tiny_disk)
    place = tiny_disk / "runs" / "smoke" / "00_a"

    def run(disk: str, size: int, code: int) -> str:
        subprocess.run(["mount", "-o", f"remount,size={disk}", str(tiny_disk)], check=True)
        assert __main__.main(["run", "smoke", "-p", f"size={size}"]) == code
        said = capsys.readouterr()
        if code == 2:
            assert said.err.startswith("prehab_lib: no space left on ") and said.err.count("\n") == 1
        return said.out

    run("2m", 4, code=2)  # within the notebook
    assert {path.suffix for path in (tiny_disk / "runs" / ".store").iterdir()} == {".lock"}
    run("12m", 1, code=0)
    before = files(place)
    run("12m", 5, code=2)  # as it is published
    assert files(place) == before
    assert "already up to date: 1 of 1" in run("30m", 5, code=0)
    assert len(files(place)["big"]) == 5 * 2**20 and json.loads(files(place)["run.json"])["params"] == {"size": 5}


def test_a_read_only_disk_with_everything_stored_is_up_to_date(tiny_disk, write_notebook, monkeypatch, capsys):
    """Runs, report and figures say so and end well; what is missing there is one sentence."""
    source = "from prehab_lib.runs import certificate as c\nc.write_json(c.run_dir() / 'figures' / 'a.json', {'n': n})"
    write_notebook(tiny_disk / "notebooks" / "00_a.ipynb", source, parameters="n: int = 1  # one\n")
    monkeypatch.chdir(tiny_disk)
    subprocess.run(["mount", "-o", "remount,size=30m", str(tiny_disk)], check=True)
    commands = {"run": "1 of 1 runs are stored", "report": "runs/smoke/report.md", "figures": "figures/smoke"}
    assert [__main__.main([command, "smoke"]) for command in commands] == [0, 0, 0]
    (tiny_disk / "runs" / ".store" / "dead.part").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    capsys.readouterr()
    for command, what in commands.items():
        assert __main__.main([command, "smoke"]) == 0
        assert capsys.readouterr().out == f"already up to date: {what} (the disk is read-only)\n"
    assert __main__.main(["run", "smoke", "-p", "n=2"]) == 2
    said = capsys.readouterr()
    assert "Read-only file system" in said.err and said.err.count("\n") == 1 and said.out == ""


def test_work_folders_of_killed_runs_are_swept_but_not_those_at_work(tmp_path):
    kept = store.Store(tmp_path)
    for key in ("dead", "alive"):
        kept.begin(key)
    with kept.hold_run("alive"):
        other = "from prehab_lib.runs.store import Store; Store('.').sweep()"
        subprocess.run([sys.executable, "-c", other], cwd=tmp_path, check=True)
    assert [part.name for part in kept.folder.glob("*.part")] == ["alive.part"]


def test_a_stored_run_is_published_under_whatever_name_the_plan_gives_it(tmp_path):
    """The same parameters with and without a grid share a key; each name has its files, the figures apart."""
    kept = store.Store(tmp_path)
    stored(kept, "key", "04_bert", "figures/a.png")
    for name in ("04_bert", "04_bert.cola"):
        kept.publish("key", "lab", name)
    figures = ["figures/04_bert.cola/a.png", "figures/a.png"]
    assert sorted(files(tmp_path / "lab")) == ["04_bert.cola/run.json", "04_bert/run.json", *figures]
