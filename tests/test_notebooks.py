"""What every notebook of the book keeps to, and that the comparison of their outputs can tell a wrong number."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from nbval import kernel

from prehab_lib.runs import grid
from prehab_lib.tasks import parameters

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))
assert LESSONS and SOLUTIONS, "there are no notebooks"
PROFILES = sorted((ROOT / "params").glob("*.yaml"))
DISK = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|work|mnt|opt|usr|var|private)/\w|\b[A-Z]:\\+\w")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "notebooks"))


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def faults(path: Path) -> list[str]:
    """What is wrong with a notebook file, in words; empty where nothing is."""
    text = path.read_text(encoding="utf-8")
    cells = code_cells(path)
    counts = [cell["execution_count"] for cell in cells]
    outputs = [output for cell in cells for output in cell["outputs"]]
    checks = {
        f"execution counts {counts}: nbval compares nothing in a cell without": counts
        != list(range(1, len(cells) + 1)),
        "stderr in an output": any(output.get("name") == "stderr" for output in outputs),
        "an error in an output": any(output["output_type"] == "error" for output in outputs),
        "a path of somebody's disk": DISK.search(re.sub(r'"image/png": ".*?"', "", text)),
        f"{len(text) // 1000} kB, not below 300": len(text) >= 300_000,
        "volatile metadata": re.search(r'"(papermill|execution)": ?\{', text),
    }
    for cell in cells:
        most = 30 if "parameters" in cell["metadata"].get("tags", []) else 25  # a table, one name a line
        lines = "".join(cell["source"]).count("\n") + 1
        if lines > most:
            checks[f"a cell of {lines} lines"] = True
    return [fault for fault, holds in checks.items() if holds]


@pytest.mark.parametrize("path", LESSONS + SOLUTIONS, ids=name)
def test_a_notebook_is_clean(path):
    assert faults(path) == []


@pytest.mark.parametrize("path", LESSONS, ids=name)
def test_a_lesson_has_parameters_that_hold(path):
    assert path.parent / "solutions" / path.name in SOLUTIONS
    read = parameters.read(path)
    assert read, "no cell is tagged `parameters`"
    assert parameters.resolve(path, {}) == {name: default for name, (_, default) in read.items()}
    tagged = [n for n, cell in enumerate(code_cells(path)) if "parameters" in cell["metadata"].get("tags", [])]
    cell, following = ("".join(code_cells(path)[tagged[0] + n]["source"]) for n in (0, 1))
    for name in read:
        assert re.search(rf"^{name}: (?:[^#]|\n)*  # \S", cell, re.M), f"{name} has no comment"
    assert f'parameters.check("{path.stem}", globals())' in following


def test_scores_are_kept():
    """The audit judges what a run kept: scores that it did not keep count as not run."""
    for path in LESSONS:
        text = "\n".join("".join(cell["source"]) for cell in code_cells(path))
        assert ("Results(" in text) == ("results.save()" in text), path.name


def test_no_two_figures_of_the_book_have_one_name():
    """They are published into one folder, figures/."""
    cells = [cell for path in LESSONS for cell in code_cells(path)]
    names = [name for cell in cells for name in re.findall(r'plots\.save\(fig, "(\w+)"', "".join(cell["source"]))]
    assert len(names) == len(set(names)) > 40, sorted(names)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_a_profile_fits_its_notebook_and_says_why(path):
    notebook, profile, _ = path.name.split(".")
    assert path.read_text(encoding="utf-8").splitlines()[0].startswith("# ")
    values = parameters.load_file(path)
    [(_, resolved), *_] = grid.expand(ROOT / "notebooks" / f"{notebook}.ipynb", values, {}, path.name)
    values.pop("grid", None)
    assert profile != "smoke", "the defaults are the smoke profile"
    defaults = parameters.resolve(ROOT / "notebooks" / f"{notebook}.ipynb", {})
    assert [key for key in values if resolved[key] == defaults[key]] == [], "only what differs from the defaults"


CELL = {"cell_type": "code", "metadata": {}, "execution_count": 1, "outputs": [], "source": "1"}
TEXT = {"output_type": "stream", "name": "stdout", "text": "fine"}


def test_each_fault_is_seen(tmp_path):
    path = tmp_path / "a.ipynb"
    for cell, word in [
        ({}, None),
        ({"execution_count": None}, "counts"),
        ({"execution_count": 2}, "counts"),
        ({"outputs": [TEXT | {"name": "stderr"}]}, "stderr"),
        ({"outputs": [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]}, "error"),
        ({"outputs": [TEXT | {"text": "saved in /home/ann/x"}]}, "disk"),
        ({"source": 'open("C:\\\\data")'}, "disk"),
        ({"outputs": [TEXT | {"text": "see https://arxiv.org/home/x and 1/2"}]}, None),
        ({"outputs": [TEXT | {"text": "x" * 300_000}]}, "kB"),
        ({"source": "1" + "\n1" * 25}, "lines"),
        ({"metadata": {"papermill": {"duration": 1}}}, "volatile"),
    ]:
        path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [CELL | cell]}))
        found = faults(path)
        assert (found == []) if word is None else len(found) == 1 and word in found[0], (cell, found)


def test_a_line_that_has_no_point_gets_no_name():
    """Over a score of 0 there is no relative gain; a run of hours must not end at the name of its line."""
    sources = ["".join(cell["source"]) for cell in code_cells(ROOT / "notebooks" / "03_vit.ipynb")]
    (source,) = [source for source in sources if "def name_ends" in source]
    book = {"math": math}
    exec(source[source.index("def name_ends") :], book)
    ax = Figure().subplots()
    ax.plot([40, 60], [1.0, 2.0], label="drawn")
    ax.plot([], [], label="empty")
    book["name_ends"](ax)
    assert [text.get_text() for text in ax.texts] == ["drawn"]


def executed(path: Path, cells: list[tuple[str, str, str]]) -> None:
    """A notebook whose cells are (source, stored output, kind: "stream" or "result")."""
    content = []
    for number, (source, stored, kind) in enumerate(cells, 1):
        output = {"output_type": "execute_result", "execution_count": number, "metadata": {}}
        output |= {"data": {"text/plain": stored}}
        if kind == "stream":
            output = TEXT | {"text": stored}
        cell = {"id": f"c{number}", "execution_count": number, "source": source}
        content.append(CELL | cell | {"outputs": [output] if stored else []})
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": content}))


def test_outputs_are_compared_with_a_tolerance_that_a_wrong_number_fails(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    good = [
        ("print('accuracy 0.78784 at rank 230')", "accuracy 0.78790 at rank 230\n", "stream"),
        ("[0.5, -1.2501e-3]", "[0.50001, -1.2500e-3]", "result"),
        ("'hidden';", "", "result"),
        ("print('loss  12.50 |  3.1')", "loss 12.501 | 3.1\n", "stream"),
        ("1e-16", "3e-16", "result"),
    ]
    bad = [
        ("print('accuracy 0.98790')", "accuracy 0.78790\n", "stream"),
        ("print('rank 231')", "rank 230\n", "stream"),
        ("print('1000001 parameters')", "1000000 parameters\n", "stream"),
        ("-0.5", "0.5", "result"),
        ("[0.5]", "[0.5, 0.5]", "result"),
        ("print('does not hold: 0 of 3')", "holds at 3 of 3\n", "stream"),
        ("'shown'", "", "result"),
        ("import sys; print('careful', file=sys.stderr)", "", "stream"),
    ]
    executed(tmp_path / "good.ipynb", good)
    executed(tmp_path / "bad.ipynb", bad)
    options = ["--nbval-current-env", "-q", "-rA", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    options += ["--nbval-sanitize-with", str(ROOT / "tests" / "sanitize.cfg")]
    command = [sys.executable, "-m", "pytest", "--nbval", *options, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    verdicts = re.findall(r"^(PASSED|FAILED) (\w+)\.ipynb::Cell (\d+)", done.stdout, re.MULTILINE)
    expected = {("PASSED", "good", str(n)) for n in range(len(good))}
    expected |= {("FAILED", "bad", str(n)) for n in range(len(bad))}
    assert set(verdicts) == expected, done.stdout[-3000:]


def test_a_kernel_that_dies_as_it_starts_is_started_again_twice(monkeypatch):
    died = "Kernel died before replying to kernel_info"  # a port had been taken
    real, asked = kernel.KernelManager, []

    def manager(**settings):
        asked.append(settings)
        if len(asked) <= failures:
            raise RuntimeError(died)
        return real(**settings)

    monkeypatch.setattr(kernel, "KernelManager", manager)
    failures = 9
    with pytest.raises(RuntimeError, match=died):
        kernel.RunningKernel(kernel.CURRENT_ENV_KERNEL_NAME)
    assert len(asked) == 3
    failures, asked[:] = 2, []
    running = kernel.RunningKernel(kernel.CURRENT_ENV_KERNEL_NAME)
    try:
        assert running.is_alive() and len(asked) == 3
    finally:
        running.stop()
