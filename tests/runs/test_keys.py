"""The key of a run changes with everything that decides its numbers, and with nothing else."""

import json
import os

import pytest

from prehab_lib.runs import keys
from prehab_lib.runs.plan import Run


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
            beside = file.with_suffix(".py").is_file()  # an exercise's, read at a check: in no key, as its module
            assert file.suffix in keys.DATA and (beside or any(f'"{file.name}"' in text for text in texts)), file


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


def test_data_and_large_files_are_told_apart_by_size_and_time(tmp_path, library, write_notebook, monkeypatch):
    notebook = write_notebook(tmp_path / "00_a.ipynb", "1")

    def key(params: dict, file=tmp_path / "none", content=b"", time=1) -> str:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, (time, time))
        return keys.key(Run("00_a", notebook, "lab", params), {}, library)

    unset = key({"data_root": ""})
    monkeypatch.setattr(keys, "SMALL", 2)
    for params, place in [
        ({"data_root": str(tmp_path / "data")}, "data/cifar10/train.parquet"),
        ({"data_root": str(tmp_path / "data")}, "data/glue/cola/data/train.parquet"),
        ({"model": str(tmp_path / "model.bin")}, "model.bin"),
    ]:
        file = tmp_path / place
        assert key(params, file, b"123") == key(params, file, b"321"), place
        assert len({key(params, file, b"321"), key(params, file, b"4321"), key(params, file, b"321", 2)}) == 3, place
    monkeypatch.setenv("PREHAB_DATA", str(tmp_path / "data"))
    assert key({"data_root": ""}) != unset
