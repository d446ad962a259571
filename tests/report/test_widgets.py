"""Figures to move: sliders where a front end listens, else the figure at its defaults; and the notebooks that have them."""

import base64
import io
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
        ax.set(ylim=(0, 5))
        return fig, pd.DataFrame({"height": [height * factor]})

    draw.asked = []
    return draw


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, with its options."""
    import IPython.display

    found = []
    monkeypatch.setattr(IPython.display, "display", lambda thing, **options: found.append((thing, options)))
    return found


def test_without_a_front_end_there_is_the_figure_once_and_its_table(drawn, shown):
    import matplotlib.pyplot as pyplot

    table = widgets.play(drawn, height=range(5), name=["nuclear", "svd"])
    [(figure, options)] = shown
    assert type(figure).__name__ == "Figure" and options == {}
    assert table.height.tolist() == [20] and drawn.asked == [(2, "nuclear")]
    assert not pyplot.fignum_exists(figure.number), "an open figure would be shown a second time"


def test_with_a_front_end_there_are_sliders_and_the_picture_for_who_has_none(drawn, shown, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert widgets.play(drawn, height=range(5), name=["nuclear", "svd"]) is None
    [(bundle, options)] = shown
    assert options == {"raw": True} and VIEW in bundle
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"


def test_a_moved_slider_draws_anew_and_a_place_seen_before_does_not(drawn):
    box, first = widgets.panel(
        drawn, {"height": 2, "name": "nuclear"}, {"height": range(5), "name": ["nuclear", "svd"]}
    )
    slider, menu, picture, numbers = box.children
    assert "<td>20</td>" in numbers.value and picture.value == first
    slider.value = 3
    assert "<td>30</td>" in numbers.value and picture.value != first
    menu.value = "svd"
    assert drawn.asked == [(2, "nuclear"), (3, "nuclear"), (3, "svd")]
    menu.value, slider.value = "nuclear", 2
    assert picture.value == first and len(drawn.asked) == 3


def test_panels_keep_their_places():
    figures = []

    def draw(lines=1):
        fig, ax = plots.figure()
        ax.set(ylabel="\n".join("label" * lines for _ in range(lines)))
        figures.append(fig)
        return fig, pd.DataFrame()

    frames = widgets.Frames(draw)
    for lines in (1, 5):
        frames({"lines": lines})
    one, two = (figure.axes[0].get_position().bounds for figure in figures)
    assert one == two


def test_what_a_drawing_raises_is_read_where_the_table_stands(drawn):
    def broken(height=1):
        if height > 1:
            raise ValueError("height <2> is too much")
        return drawn(height)

    box, _ = widgets.panel(broken, {"height": 1}, {"height": [1, 2]})
    slider, _, numbers = box.children
    slider.value = 2
    assert "ValueError: height &lt;2&gt; is too much" in numbers.value
    slider.value = 1
    assert "<td>10</td>" in numbers.value


def test_zoom_makes_the_moving_picture_larger(drawn):
    from PIL import Image

    one, two = (Image.open(io.BytesIO(widgets.Frames(drawn, zoom)({"height": 2})[0])).size for zoom in (1, 2))
    assert two == (2 * one[0], 2 * one[1])


@pytest.mark.parametrize(
    "controls, told",
    [
        ({"width": [1]}, "no argument 'width' to move"),
        ({"height": [0, 1]}, "height: the default of draw must be one of"),
    ],
)
def test_a_control_that_cannot_move_is_refused(drawn, shown, controls, told):
    with pytest.raises(ValueError, match=told):
        widgets.play(drawn, **controls)
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
        ({"JPY_SESSION_NAME": "a.ipynb", "PREHAB_RUN_DIR": "runs"}, {}, False),
    ],
)
def test_when_somebody_listens(environment, variables, listening, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shell = SimpleNamespace(user_ns=variables)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert widgets.interactive() is listening


def test_without_ipywidgets_nobody_listens(monkeypatch):
    monkeypatch.setenv("PREHAB_WIDGETS", "1")
    monkeypatch.setattr(widgets.importlib.util, "find_spec", lambda name: None)
    assert not widgets.interactive()


def test_no_stored_notebook_holds_a_widget():
    for path in sorted(NOTEBOOKS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        assert "widgets" not in content["metadata"], path.name
        kept = [
            kind for cell in content["cells"] for output in cell.get("outputs", []) for kind in output.get("data", {})
        ]
        assert VIEW not in kept, path.name


@pytest.mark.parametrize("name", MOVED)
def test_the_static_figure_is_stored_in_the_cell_that_moves(name):
    cells = {
        cell["id"]: cell for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    }
    cell = cells[MOVED[name]]
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
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["id"] != "install"]
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
