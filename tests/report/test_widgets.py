"""Figures to move: sliders, or the figure at its defaults; and the notebooks with them."""

import json
import symtable
from pathlib import Path

import matplotlib.pyplot as pyplot
import pandas as pd
import pytest

from prehab_lib.report import plots, widgets

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
MOVED = {"01_surrogates": "move-lam", "02_rulers": "code-07", "07_adaptive_rank": "step-drop"}
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def no_sliders(monkeypatch):
    monkeypatch.setenv("PREHAB_WIDGETS", "0")
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)


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
    things = []

    def display(*several):
        things.extend(plots._compact_png(one) if hasattr(one, "savefig") else one for one in several)

    monkeypatch.setattr("IPython.display.display", display)
    return things


def test_without_sliders_there_is_the_figure_once_and_a_slider_draws_anew(drawn, shown, monkeypatch):
    pyplot.close("all")
    controls = {"height": range(5), "name": ["nuclear", "svd"]}
    table = widgets.play(drawn, **controls)
    assert [picture[:4] for picture in shown] == [b"\x89PNG"]
    assert table.height.tolist() == [20] and drawn.asked == [(2, "nuclear")]
    assert not pyplot.get_fignums(), "an open figure would be shown a second time"
    monkeypatch.delenv("PREHAB_WIDGETS")
    assert widgets.play(drawn, zoom=2, **controls) is None
    small, large, table, box = shown
    slider, menu, _ = box.children
    widths = [int.from_bytes(png[16:20]) for png in (small, large)]  # where a PNG says its width
    assert widths[1] == 2 * widths[0] and table.height.tolist() == [20]
    slider.value, menu.value = 3, "svd"
    assert drawn.asked[1:] == [(2, "nuclear"), (3, "nuclear"), (3, "svd")]
    assert shown[-1].height.tolist() == [30]


def test_a_control_that_cannot_move_is_refused(drawn, shown):
    with pytest.raises(ValueError, match="argument of draw = 'width' is not known: choose one of height, name, factor"):
        widgets.play(drawn, width=[1])
    with pytest.raises(ValueError, match="default of height = 2 is not known: choose one of 0, 1"):
        widgets.play(drawn, height=[0, 1])
    assert shown == []


def test_sliders_need_ipywidgets_and_no_run(monkeypatch):
    assert not widgets.interactive(), "PREHAB_WIDGETS=0"
    monkeypatch.delenv("PREHAB_WIDGETS")
    assert widgets.interactive()
    monkeypatch.setenv("PREHAB_RUN_DIR", "runs")
    assert not widgets.interactive(), "a stored notebook holds no widget"
    monkeypatch.delenv("PREHAB_RUN_DIR")
    monkeypatch.setattr(widgets.importlib.util, "find_spec", lambda name: None)
    assert not widgets.interactive(), "without ipywidgets"


def test_no_stored_notebook_holds_a_widget_but_the_static_figure_of_the_cell_that_moves():
    for path in sorted(NOTEBOOKS.rglob("[0-9]*.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert "widgets" not in content["metadata"], path.name
        outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
        assert not any(VIEW in output.get("data", {}) for output in outputs), path.name
        for cell in content["cells"]:
            if path.parent == NOTEBOOKS and cell["id"] == MOVED.get(path.stem):
                assert "widgets.play(" in "".join(cell["source"]), path.name
                figure, table = cell["outputs"]
                assert "image/png" in figure["data"] and "text/html" in table["data"], path.name


def names_of(table: symtable.SymbolTable, *kinds: str) -> set[str]:
    return {symbol.get_name() for symbol in table.get_symbols() for kind in kinds if getattr(symbol, kind)()}


def read_by(table: symtable.SymbolTable) -> set[str]:
    return names_of(table, "is_global").union(*map(read_by, table.get_children()))


def test_later_cells_change_nothing_that_the_figure_reads():
    """A slider is moved after *Run all*: by then a name means what the last cell made of it."""
    for name, moved in MOVED.items():
        cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        tables = [symtable.symtable("".join(cell["source"]), cell["id"], "exec") for cell in code]
        at = [cell["id"] for cell in code].index(moved)
        functions = {child.get_name(): child for table in tables[: at + 1] for child in table.get_children()}
        pending, read = {tables[at].get_children()[0].get_name()}, set()
        while pending:
            read |= pending
            pending = set().union(*(read_by(functions[one]) for one in pending & functions.keys())) - read
        later = set().union(*(names_of(table, "is_assigned", "is_imported") for table in tables[at + 1 :]))
        assert len(read) > 3 and read & later == set(), name
