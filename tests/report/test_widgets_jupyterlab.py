"""A figure to move, in a real JupyterLab in a real browser: an arrow key moves the slider, picture and table follow."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.browser import chromium, missing, visit  # noqa: F401
from tests.processes import alive

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ["code-01", "code-02", "code-03", "code-04", "code-06", "code-07"]  # cells of 02, up to its figure
LATER = "M = U = Vt = s = None\nprint('later cells use the letters')"
# Before its kernel has answered, JupyterLab meets *Run All Cells* with a dialog.
READY = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
TOKEN = "only-for-this-test"


def cut_down(folder: Path) -> None:
    """02 up to its figure, and what later cells do to the letters."""
    notebook = json.loads((ROOT / "notebooks" / "02_rulers.ipynb").read_text(encoding="utf-8"))
    known = {cell["id"]: cell for cell in notebook["cells"]}
    cells = [known[id] | {"outputs": []} for id in NEEDED]
    notebook["cells"] = [*cells, cells[-1] | {"id": "later", "source": LATER}]
    (folder / "moved.ipynb").write_text(json.dumps(notebook))


def children_of(server: int) -> list[int]:
    children = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == server:
                children.append(int(stat.parent.name))
        except OSError:
            continue
    return children


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab with the cut-down notebook; nothing of it is left afterwards."""
    if reason := missing():
        pytest.skip(reason)
    for package in ("jupyterlab", "ipywidgets"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install -e '.[jupyter]'")
    (tmp_path / "books").mkdir()
    cut_down(tmp_path / "books")
    settings = tmp_path / "config/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # cells out of sight are there too
    own = {f"JUPYTER_{name.upper()}_DIR": str(tmp_path / name) for name in ("config", "data", "runtime")}
    own |= {"IPYTHONDIR": str(tmp_path / "ipython"), "PREHAB_WIDGETS": "", "PYTHONPATH": str(ROOT)}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"]
    options += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=None"]
    options += [f"--ServerApp.root_dir={tmp_path / 'books'}", "--LabApp.expose_app_in_browser=True"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while not (addresses := list((tmp_path / "runtime").glob("jpserver-*.json"))):
            text = (tmp_path / "log").read_text()
            assert server.poll() is None and time.monotonic() < until, f"JupyterLab did not start:\n{text[-3000:]}"
            time.sleep(0.1)
        yield json.loads(addresses[0].read_text())["url"]
    finally:
        kernels = children_of(server.pid)
        server.kill()
        server.wait()
        for kernel in kernels:
            if alive(kernel):
                os.kill(kernel, signal.SIGKILL)


def test_moving_a_slider_moves_picture_and_table(lab, visit):  # noqa: F811
    seen = visit(f"{lab}lab/tree/moved.ipynb?token={TOKEN}", height=1400, timeout=60)
    page = seen.page
    page.wait_for_function(READY)
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").click()
    page.get_by_text("Run All Cells", exact=True).click()
    outputs = ".jp-OutputArea-output[data-mime-type*="
    failed = page.locator(f'{outputs}"error"], {outputs}"stderr"]')
    page.get_by_text("later cells use the letters", exact=True).or_(failed).first.wait_for(timeout=180_000)
    assert failed.all_inner_texts() == []

    box = page.locator(".jp-OutputArea .widget-vbox")

    def moved(key: str | None, rank: str) -> tuple[str, str]:
        """The table and the picture once the slider, moved by this key, stands at `rank`."""
        if key:
            box.locator(".noUi-handle").focus()
            box.locator(".noUi-handle").press(key)
        row = box.locator("table th", has_text=rank)
        row.first.wait_for(timeout=20_000)
        assert box.locator(".widget-readout").first.inner_text() == rank
        return box.locator("table").inner_text(), box.locator("img").get_attribute("src")

    start = moved(None, "16")
    assert "8528" in start[0]
    there = moved("ArrowRight", "17")
    assert "9061" in there[0] and there[1] != start[1]  # 17 · (213 + 320) numbers
    assert moved("ArrowLeft", "16") == start
    assert failed.all_inner_texts() == [] and seen.outside == []
