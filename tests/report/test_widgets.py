"""Figures to move: sliders where a front end listens, else the figure at its defaults; and the notebooks that have them."""

import json
import symtable
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from prehab_lib.report import plots, widgets

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
MOVED = {"01_surrogates": "move-lam", "02_rulers": "code-07", "07_adaptive_rank": "step-drop"}
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def no_front_end(monkeypatch):
    for name in (*widgets.MARKS, "PREHAB_WIDGETS", "PREHAB_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def drawn():
    """A drawing that notes what it was asked for."""

    def draw(height=2, name="nuclear", factor=10):
        draw.asked.append((height, name))
        fig, ax = plots.figure()
        ax.plot([0, height], **plots.style(name))
        return fig, pd.DataFrame({"height": [height * factor]})

    draw.asked = []
    return draw


@pytest.fixture
def shown(monkeypatch):
    """What was displayed."""
    import IPython.display

    things = []

    def display(*several):
        for thing in several:
            things.append(plots._compact_png(thing) if hasattr(thing, "savefig") else thing)

    monkeypatch.setattr(IPython.display, "display", display)
    return things


def test_without_a_front_end_there_is_the_figure_once_and_its_table(drawn, shown):
    import matplotlib.pyplot as pyplot

    pyplot.close("all")
    table = widgets.play(drawn, height=range(5), name=["nuclear", "svd"])
    assert [picture[:4] for picture in shown] == [b"\x89PNG"]
    assert table.height.tolist() == [20] and drawn.asked == [(2, "nuclear")]
    assert not pyplot.get_fignums(), "an open figure would be shown a second time"


def test_with_a_front_end_a_moved_slider_draws_anew(drawn, shown, monkeypatch):
    widgets.play(drawn, height=range(5))
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert widgets.play(drawn, zoom=2, height=range(5), name=["nuclear", "svd"]) is None
    small, large, table, box = shown
    slider, menu, _ = box.children
    widths = [int.from_bytes(png[16:20]) for png in (small, large)]  # where a PNG says its width
    assert widths[1] == 2 * widths[0] and table.height.tolist() == [20]
    slider.value, menu.value = 3, "svd"
    assert drawn.asked[1:] == [(2, "nuclear"), (3, "nuclear"), (3, "svd")]
    assert shown[-1].height.tolist() == [30]


def test_a_control_that_cannot_move_is_refused(drawn, shown):
    with pytest.raises(ValueError, match="no argument 'width' to move"):
        widgets.play(drawn, width=[1])
    with pytest.raises(ValueError, match="height: the default of draw must be one of"):
        widgets.play(drawn, height=[0, 1])
    assert shown == []


@pytest.mark.parametrize(
    "environment, variables, listening",
    [
        ({}, {}, False),
        ({"JPY_SESSION_NAME": "a.ipynb"}, {}, True),
        ({"COLAB_RELEASE_TAG": "release"}, {}, True),
        ({}, {"__vsc_ipynb_file__": "a.ipynb"}, True),
        ({"PREHAB_WIDGETS": "1"}, {}, True),
        ({"PREHAB_WIDGETS": "0", "JPY_SESSION_NAME": "a.ipynb"}, {}, False),
        ({"PREHAB_WIDGETS": "1", "PREHAB_RUN_DIR": "runs"}, {}, False),
    ],
)
def test_when_somebody_listens(environment, variables, listening, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shell = SimpleNamespace(user_ns=variables)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert widgets.interactive() is listening
    monkeypatch.setattr(widgets.importlib.util, "find_spec", lambda name: None)
    assert not widgets.interactive()  # without ipywidgets nobody does


def cells_of(name: str) -> list[dict]:
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_no_stored_notebook_holds_a_widget():
    for path in sorted(NOTEBOOKS.rglob("[0-9]*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert "widgets" not in content["metadata"], path.name
        outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
        assert not any(VIEW in output.get("data", {}) for output in outputs), path.name


@pytest.mark.parametrize("name", MOVED)
def test_the_static_figure_is_stored_in_the_cell_that_moves(name):
    cell = next(cell for cell in cells_of(name) if cell["id"] == MOVED[name])
    assert "widgets.play(" in "".join(cell["source"])
    figure, table = cell["outputs"]
    assert "image/png" in figure["data"] and "text/html" in table["data"]


def globals_of(table: symtable.SymbolTable) -> set[str]:
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    return names.union(*map(globals_of, table.get_children()))


def given(table: symtable.SymbolTable) -> set[str]:
    return {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


@pytest.mark.parametrize("name", MOVED)
def test_later_cells_change_nothing_that_the_figure_reads(name):
    """A slider is moved after *Run all*: by then a name means what the last cell made of it."""
    code = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]
    tables = [symtable.symtable("".join(cell["source"]), cell["id"], "exec") for cell in code]
    at = [cell["id"] for cell in code].index(MOVED[name])
    functions = {child.get_name(): child for table in tables[: at + 1] for child in table.get_children()}
    pending, read = {next(child.get_name() for child in tables[at].get_children())}, set()
    while pending:
        function = pending.pop()
        read.add(function)
        pending |= (globals_of(functions[function]) if function in functions else set()) - read
    later = set().union(*map(given, tables[at + 1 :]))
    assert len(read) > 3 and read & later == set()
