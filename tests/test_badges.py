"""The way into Colab and Binder: links under every title, a cell that fetches the library, one address for all."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prehab_lib import __main__, badges, keys
from prehab_lib.plan import Run

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = badges.notebooks(ROOT)


def content_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT / "notebooks").as_posix()


@pytest.fixture
def book(tmp_path, write_notebook, monkeypatch):
    """A repository of two notebooks without badges, as the working directory."""
    project = (
        'name = "x"\n\n[tool.prehab]\nrepository = "OWNER/REPOSITORY"  # why\n\n[tool.ruff]\nrepository = "other"\n'
    )
    (tmp_path / "pyproject.toml").write_text(project)
    for path in ("notebooks/01_a.ipynb", "notebooks/solutions/01_a.ipynb"):
        file = write_notebook(tmp_path / path, "x = 1", "x", parameters="n: int = 1  # one")
        content = content_of(file)
        title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": ["# A title\n", "\n", "Then prose."]}
        content["cells"].insert(0, title)
        content["metadata"]["prehab"] = {"last": True}
        result = {"output_type": "execute_result", "execution_count": 3, "metadata": {}, "data": {"text/plain": "1"}}
        content["cells"][-1] |= {"execution_count": 3, "outputs": [result]}
        file.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_every_notebook_carries_the_address_that_is_set(path):
    content = content_of(path)
    told = badges.setting(ROOT)
    assert badges.stamped(content, path.relative_to(ROOT).as_posix(), told) == content, "run `make badges`"
    [cell] = [cell for cell in content["cells"] if "install" in cell["metadata"].get("tags", [])]
    assert cell["outputs"] == [] and content["cells"][1] is cell
    assert "".join(content["cells"][0]["source"]).splitlines()[2] == badges.links(
        told, path.relative_to(ROOT).as_posix()
    )


def test_the_links_lead_to_the_notebook():
    colab, binder = badges.links("ann/book", "notebooks/solutions/01_a.ipynb").split(" · ")
    where = "https://colab.research.google.com/github/ann/book/blob/main/notebooks/solutions/01_a.ipynb"
    assert colab == f"[Open in Colab]({where})"
    path = "notebooks%2Fsolutions%2F01_a.ipynb"
    assert binder == f"[Open in Binder](https://mybinder.org/v2/gh/ann/book/main?labpath={path})"


def test_the_address_is_written_everywhere_and_once(book):
    def told() -> list[str]:
        return [*(file.read_text() for file in badges.notebooks(book)), (book / "pyproject.toml").read_text()]

    assert len(badges.write(book, "ann/book")) == 3
    assert badges.setting(book) == "ann/book" and 'repository = "other"' in told()[-1] and "# why" in told()[-1]
    assert all("ann/book" in text for text in told())
    before = told()
    assert badges.write(book, "ann/book") == [] and told() == before
    assert len(badges.write(book, "bea/other.book")) == 3
    assert not any("ann/book" in text for text in told())
    assert len(badges.write(book, "ann/book")) == 3 and told() == before


def test_stamping_keeps_the_rest_and_counts_anew(book):
    file = badges.notebooks(book)[0]
    before = content_of(file)
    badges.write(book, "ann/book")
    content = content_of(file)
    assert {**content, "cells": 0} == {**before, "cells": 0}
    assert "".join(content["cells"][0]["source"]).endswith(")\n\nThen prose.")
    counts = [cell["execution_count"] for cell in content["cells"] if cell["cell_type"] == "code"]
    assert counts == [1, 2, 3, 4] and content["cells"][-1]["outputs"][0]["execution_count"] == 4
    assert [cell["source"] for cell in content["cells"][2:]] == [cell["source"] for cell in before["cells"][1:]]


def test_a_notebook_without_a_title_is_refused(book):
    content = content_of(badges.notebooks(book)[0])
    content["cells"].pop(0)
    with pytest.raises(ValueError, match=r"01_a: the first cell must begin with a title"):
        badges.stamped(content, "01_a", "ann/book")


@pytest.mark.parametrize(
    "address, repository",
    [
        ("https://github.com/ann/book.git", "ann/book"),
        ("https://ann:token@github.com/ann/book", "ann/book"),
        ("git@github.com:ann/my.book.git", "ann/my.book"),
        ("ssh://git@github.com/ann/book/", "ann/book"),
        ("https://gitlab.com/ann/book.git", None),
        ("/srv/github.com/book", None),
        (None, None),
    ],
)
def test_the_address_of_origin(address, repository, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    if address:
        subprocess.run(["git", "-C", str(tmp_path), "remote", "add", "origin", address], check=True)
    assert badges.origin(tmp_path) == repository


def test_the_command(book, capsys):
    assert __main__.main(["badges", "--repository", "ann/book"]) == 0
    assert "ann/book: 3 files changed" in capsys.readouterr().out
    assert __main__.main(["badges"]) == 0  # no origin: the address stays
    assert "ann/book: 0 files changed" in capsys.readouterr().out
    for wrong in ("ann", "https://github.com/ann/book", "ann/book/x", 'ann/"book'):
        assert __main__.main(["badges", "--repository", wrong]) == 2
        assert "write owner/name" in capsys.readouterr().err
    assert badges.setting(book) == "ann/book"


def test_the_install_cell_moves_no_key(book, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    file = badges.notebooks(book)[0]
    run = Run("01_a", file, "smoke", {"n": 1})
    first = keys.key(run, {}, library)
    badges.write(book, "ann/book")
    assert keys.key(run, {}, library) == first and keys.code_cells(file) == ["n: int = 1  # one", "x = 1", "x"]


SHELL = """
import importlib.util, json, sys
from IPython.core.interactiveshell import InteractiveShell
shell, found, asked = InteractiveShell(), importlib.util.find_spec, []
if sys.argv[1] == "missing":
    importlib.util.find_spec = lambda name, *rest: None if name == "prehab_lib" else found(name, *rest)
shell.register_magic_function(lambda line: asked.append(" ".join(line.split())), "line", "pip")
before = list(sys.path)
done = shell.run_cell(sys.stdin.read())
added = [path for path in sys.path if path not in before]
print(json.dumps({"pip": asked, "added": added, "error": str(done.error_in_exec or done.error_before_exec or "")}))
"""


def run_cell(cell: str, folder: Path, library: str, hub: str = "") -> dict:
    """Run it in IPython, in a folder, with %pip noting what it is asked for. hub: what https://github.com/ is to git."""
    git = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{hub}/.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHELL, library],
        input=cell,
        cwd=folder,
        env=os.environ | (git if hub else {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    *printed, told = done.stdout.splitlines()
    return json.loads(told) | {"printed": printed, "stderr": done.stderr}


def test_the_install_cell_does_nothing_where_the_library_is(tmp_path):
    assert run_cell(badges.install("ann/book"), tmp_path, "installed") == {
        "pip": [],
        "added": [],
        "error": "",
        "printed": [],
        "stderr": "",
    }


def test_the_install_cell_fetches_the_library_where_it_is_missing(tmp_path):
    source = tmp_path / "hub" / "ann" / "book"
    (source / "prehab_lib").mkdir(parents=True)
    (source / "prehab_lib" / "__init__.py").write_text("")
    git = ["git", "-C", str(source), "-c", "user.name=Ann", "-c", "user.email=ann@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = {
        "pip": ['install --quiet --editable "prehab[vision,text,rehab]"'],
        "added": [str(alone / "prehab")],
        "error": "",
    }
    for _ in range(2):  # the second time the clone is there
        told = run_cell(badges.install("ann/book"), alone, "missing", source.parents[1].as_uri())
        assert {part: told[part] for part in expected} == expected, told
    assert (alone / "prehab" / "prehab_lib" / "__init__.py").is_file()
    inside = alone / "prehab" / "notebooks"
    inside.mkdir()
    told = run_cell(badges.install(badges.PLACEHOLDER), inside, "missing")  # in a clone, whatever the address
    assert told["pip"] == ['install --quiet --editable "..[vision,text,rehab]"'] and told["added"] == [
        str(alone / "prehab")
    ]


def test_without_an_address_the_install_cell_says_so_in_a_sentence(tmp_path):
    told = run_cell(badges.install(badges.PLACEHOLDER), tmp_path, "missing")
    sentence = "prehab_lib is missing: open this notebook from a clone, after `make setup` in it"
    assert told["error"] == sentence and told["pip"] == [] and list(tmp_path.iterdir()) == []


def test_binder_builds_from_the_lock_with_the_python_that_the_project_wants():
    folder = ROOT / "binder"
    wanted = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert wanted == ["-r ../requirements.lock"] and (folder / wanted[0].split()[1]).resolve().is_file()
    version = tuple(map(int, (folder / "runtime.txt").read_text().strip().removeprefix("python-").split(".")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert version >= tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert os.access(folder / "postBuild", os.X_OK)
