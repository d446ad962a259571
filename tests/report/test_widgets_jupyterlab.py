"""The three figures to move, in a real JupyterLab in a real browser: an arrow key moves the slider, the picture follows."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.browser import chromium, missing, visit  # noqa: F401
from tests.processes import alive

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
# Of each notebook the cells that its figure needs; in between what stands for the trained model of 07.
NEEDED = {
    "01_surrogates": [
        "code-01",
        "code-02",
        "code-03",
        "code-10",
        "code-17",
        "code-54",
        "code-56",
        "move-paths",
        "move-lam",
    ],
    "07_adaptive_rank": ["step-state", "step-named", "step-drop"],
    "02_rulers": ["code-01", "code-02", "code-03", "code-04", "code-06", "code-07"],
}
STAND_IN = """
from prehab_lib import zero_sum
draw = torch.Generator().manual_seed(0)
changes = {f"layer {n}": torch.randn(16, generator=draw, dtype=torch.float64) / 1000 for n in range(8)}
plans = {"zero_sum": zero_sum.select(changes, dict.fromkeys(changes, (16, 16)), 0.6, accounting="remap", trace=True)}
"""
LATER = "M = U = Vt = s = w = data = changes = plans = None\nprint('later cells use the letters')"
# Before its kernel has answered, JupyterLab meets *Run All Cells* with a dialog.
READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
# Of an <img>; while it changes it cannot be decoded for a moment.
PIXELS = """async image => {
    for (let tries = 0; tries < 100; tries++) {
        try { await image.decode(); break; } catch { await new Promise(later => setTimeout(later, 50)); }
    }
    const canvas = Object.assign(document.createElement("canvas"), {width: image.naturalWidth, height: image.naturalHeight});
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
}"""
TOKEN = "only-for-this-test"


def cells(name: str) -> list[str]:
    known = {
        cell["id"]: "".join(cell["source"]) for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    }
    return [known[cell] for cell in NEEDED[name]]


def cut_down(folder: Path) -> None:
    """One notebook with the cells of all three, and what their later cells do to the letters."""
    sources = [*cells("01_surrogates"), STAND_IN, *cells("07_adaptive_rank"), *cells("02_rulers"), LATER]
    made = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for n, source in enumerate(sources)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}, "cells": made}
    (folder / "moved.ipynb").write_text(json.dumps(content))


def ask(address: str, path: str, method: str = "GET") -> bytes:
    request = urllib.request.Request(f"{address}{path}", method=method, headers={"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def kernels_of(server: int) -> list[int]:
    """Processes that the server started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == server:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with the cut-down notebook; nothing of it is left afterwards."""
    if reason := missing():
        pytest.skip(reason)
    for package in ("jupyterlab", "ipywidgets"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[jupyter]'")
    home = tmp_path_factory.mktemp("lab")
    (home / "books").mkdir()
    cut_down(home / "books")
    settings = home / "config/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # cells out of sight are there too
    own = {f"JUPYTER_{name.upper()}_DIR": str(home / name) for name in ("config", "data", "runtime")}
    own |= {"IPYTHONDIR": str(home / "ipython"), "PREHAB_NOTEBOOK_DIR": str(NOTEBOOKS), "PREHAB_WIDGETS": ""}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += ["--ServerApp.port=0", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"]
    command += [
        f"--ServerApp.root_dir={home / 'books'}",
        "--LabApp.news_url=None",
        "--LabApp.expose_app_in_browser=True",
    ]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, env=os.environ | own, stdout=log, stderr=log, cwd=home, start_new_session=True
        )
    kernels = []
    try:
        address = wait_for(lambda: address_in(home / "runtime"), server, home / "log")
        wait_for(lambda: ask(address, "api/status"), server, home / "log")
        yield address
        kernels = kernels_of(server.pid)
        ask(address, "api/shutdown", "POST")
        server.wait(20)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        for kernel in kernels:
            if alive(kernel):
                os.kill(kernel, signal.SIGKILL)


def address_in(runtime: Path) -> str | None:
    return next((json.loads(file.read_text())["url"] for file in runtime.glob("jpserver-*.json")), None)


def wait_for(question, server, log: Path, seconds: float = 40):
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            if answer := question():
                return answer
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


class Panel:
    """One of the three, as the page shows it."""

    def __init__(self, page, number: int):
        self.box = page.locator(".jp-OutputArea .widget-vbox").nth(number)
        self.handle = self.box.locator(".noUi-handle").first

    def seen(self) -> tuple[str, str, str]:
        """The slider's value, the table, and the picture's pixels."""
        pixels = self.box.locator("img").evaluate(PIXELS)
        return self.box.locator(".widget-readout").first.inner_text(), self.box.locator("table").inner_text(), pixels

    def press(self, key: str, expected: str) -> tuple[str, str, str]:
        """Move by keyboard, and wait until slider, table and picture are at rest."""
        before = self.seen()
        self.handle.focus()
        self.handle.press(key)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            now = self.seen()
            if now[0] == expected and now[1] != before[1] and now[2] != before[2]:
                return now
            time.sleep(0.05)
        raise AssertionError(
            f"after {key}: slider {now[0]}, table moved {now[1] != before[1]}, picture {now[2] != before[2]}"
        )


def test_moving_a_slider_moves_picture_and_table(lab, visit):  # noqa: F811
    seen = visit(f"{lab}lab/tree/moved.ipynb?token={TOKEN}", height=1400, timeout=60)
    page = seen.page
    page.wait_for_function(READY)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
    page.get_by_text("Run All Cells", exact=True).click()
    failed = page.locator(
        '.jp-OutputArea-output[data-mime-type*="error"], .jp-OutputArea-output[data-mime-type*="stderr"]'
    )
    page.get_by_text("later cells use the letters", exact=True).or_(failed).first.wait_for(timeout=180_000)
    assert failed.all_inner_texts() == []

    spectrum, walk, image = (Panel(page, number) for number in range(3))
    start = image.seen()
    assert start[0] == "16" and "8528" in start[1]
    there = image.press("ArrowRight", "17")
    assert "9061" in there[1]  # 17 · (213 + 320) numbers
    assert image.press("ArrowLeft", "16") == start

    start = spectrum.seen()
    there = spectrum.press("ArrowRight", "0.07")
    columns = [
        [line.split("\t") for line in table.splitlines() if line[:1].isdigit()] for table in (start[1], there[1])
    ]
    control, prehab = ([[row[n] for row in table] for table in columns] for n in (2, 4))
    assert len(columns[0]) == 6 and control[0] == control[1] and prehab[0] != prehab[1]
    spectrum.box.locator("select").select_option("stable rank")
    assert "stable rank" in spectrum.box.locator("select").input_value()

    start = walk.seen()
    there = walk.press("ArrowRight", "25")
    heads = [line.split("\t") for line in start[1].splitlines() if line.startswith("smallest")]
    dropped = next(line.split("\t") for line in there[1].splitlines() if line.startswith("dropped"))
    assert dropped[1:] in [head[1:] for head in heads]  # one of the two that might go next went
    assert seen.outside == []
