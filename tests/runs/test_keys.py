"""The key of a run changes with everything that decides its numbers, and with nothing else."""

import json
import os

import pytest

from prehab_lib.runs import keys
from prehab_lib.runs.plan import Run


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "prehab_lib"
    keys._module_imports.cache_clear()
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
            assert file.suffix in keys.DATA and any(f'"{file.name}"' in text for text in texts), file


def test_what_moves_the_key_and_what_does_not(tmp_path, library, write_notebook):
    notebook = write_notebook(tmp_path / "00_a.ipynb", "from prehab_lib import middle")
    model = tmp_path / "model.bin"
    model.write_bytes(b"1")
    base = Run("00_a", notebook, "smoke", {"steps": 1, "model": str(model), "data_root": ""})

    def key(run=base, results=None):
        keys._module_imports.cache_clear()
        return keys.key(run, results or {}, library)

    first = key()
    assert len(first) == 16 and key() == first
    (library / "alone.py").write_text("x = 2")  # not imported
    content = json.loads(notebook.read_text())
    content["cells"][0] |= {"execution_count": 3, "outputs": [{"output_type": "stream", "name": "stdout", "text": "1"}]}
    content["cells"].append({"cell_type": "markdown", "id": "m", "metadata": {}, "source": "prose"})
    notebook.write_text(json.dumps(content))
    assert key() == first
    seen = {first}

    def moved(key: str):
        assert key not in seen
        seen.add(key)

    moved(key(Run("00_a", notebook, "laptop", base.params)))
    moved(key(Run("00_a", notebook, "smoke", base.params | {"steps": 2})))
    moved(key(results={"03_vit": b"1"}))
    moved(key(results={"03_vit": b"2"}))
    (library / "tables.json").write_text("[]")
    moved(key())
    (library / "deep.py").write_text("y = 3")
    moved(key())
    model.write_bytes(b"2")
    moved(key())
    write_notebook(notebook, "from prehab_lib import middle  # changed")
    moved(key())


def test_data_folders_are_told_apart_by_their_files(tmp_path, library, write_notebook, monkeypatch):
    notebook = write_notebook(tmp_path / "00_a.ipynb", "1")
    unset = Run("00_a", notebook, "lab", {"data_root": ""})
    without = keys.key(unset, {}, library)
    for place in ("cifar10", "glue/cola/data"):
        file = tmp_path / "data" / place / "train.parquet"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"1")
        run = Run("00_a", notebook, "lab", {"data_root": str(tmp_path / "data")})
        seen = {keys.key(run, {}, library)}
        file.write_bytes(b"12")
        seen.add(keys.key(run, {}, library))
        os.utime(file, (1, 1))
        seen.add(keys.key(run, {}, library))
        assert len(seen) == 3, place
    monkeypatch.setenv("PREHAB_DATA", str(tmp_path / "data"))
    assert keys.key(unset, {}, library) != without


def test_large_files_are_told_apart_by_size_and_time(tmp_path, library, write_notebook, monkeypatch):
    monkeypatch.setattr(keys, "SMALL", 2)
    model = tmp_path / "model.bin"
    run = Run("00_a", write_notebook(tmp_path / "00_a.ipynb", "1"), "lab", {"model": str(model)})

    def key(content: bytes, time: int) -> str:
        model.write_bytes(content)
        os.utime(model, (time, time))
        return keys.key(run, {}, library)

    assert key(b"123", 1) == key(b"321", 1) != key(b"321", 2)
