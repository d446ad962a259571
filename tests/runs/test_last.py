"""A notebook that reads whatever a profile has: it runs after all others, failed ones too, and again when a result changes."""

import json

import pytest

from prehab_lib import run
from prehab_lib.runs import plan

WRITES = """\
import json, os, pathlib
folder = pathlib.Path(os.environ["PREHAB_RUN_DIR"])
(folder / "result.json").write_text(json.dumps(value))
"""
READS = """\
import os, pathlib
folder = pathlib.Path(os.environ["PREHAB_RUNS"])
print({file.parent.name: file.read_text() for file in sorted(folder.glob("*/result.json"))})
"""


def last(path):
    content = json.loads(path.read_text())
    content["metadata"]["prehab"] = {"last": True}
    path.write_text(json.dumps(content))


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # its name puts it first: nothing but `last` makes it wait
    last(write_notebook(tmp_path / "notebooks" / "00_audit.ipynb", READS))
    write_notebook(tmp_path / "notebooks" / "01_a.ipynb", WRITES, parameters="value: int = 1  # a score\n")
    write_notebook(tmp_path / "notebooks" / "02_bad.ipynb", "1 / 0")
    return tmp_path


def read(home) -> str:
    cells = json.loads((home / "runs" / "smoke" / "00_audit" / "00_audit.ipynb").read_text())["cells"]
    return "".join(cells[0]["outputs"][0]["text"]).strip()


def test_it_waits_for_all_and_reads_what_there_is(home, capsys):
    assert [one.last for one in plan.runs(home, "smoke", [], {})] == [True, False, False]
    assert run.main("smoke", width=3) == 1
    said = capsys.readouterr().out
    assert said.index("failed    02_bad") < said.index("started   00_audit")
    assert said.index("finished  01_a") < said.index("started   00_audit")
    assert "2 ran, 0 cached, 1 failed, 0 skipped" in said
    assert read(home) == "{'01_a': '1'}"

    assert run.main("smoke", ["00"]) == 0  # alone: nothing to wait for, nothing new
    assert "already up to date: 1 of 1 runs are stored" in capsys.readouterr().out
    assert run.main("smoke", ["01"], {"value": 2}) == 0
    assert run.main("smoke", ["00"]) == 0
    assert "1 ran" in capsys.readouterr().out and read(home) == "{'01_a': '2'}"

    (home / "runs" / "smoke" / "01_a" / "result.json").write_text("-2")  # a file changed by hand is a new result
    assert run.main("smoke", ["00"]) == 0
    assert read(home) == "{'01_a': '-2'}"
