"""Figures to move by hand: sliders where a front end listens, the same figure drawn once where none
does.

A kernel cannot ask whether somebody is watching.  It can see who started it: JupyterLab, Notebook,
Colab and VS Code leave a mark, papermill, nbclient and nbval leave none.  A stored notebook must
hold no widget, which would be an empty box in it, so without a mark there is only the figure, with
its table under it.
"""

import base64
import html
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence

from prehab_lib.report import records
from prehab_lib.report.plots import INLINE_DPI

SIGNS = {"lam": "λ"}  # what stands beside a slider, where it is not the control's name
MARKS = (
    "JPY_SESSION_NAME",
    "COLAB_RELEASE_TAG",
)  # set by Jupyter's server for a kernel with a notebook; by Colab
VSCODE = "__vsc_ipynb_file__"  # VS Code tells its kernel by this variable


def interactive() -> bool:
    """Whether sliders are of use: a notebook is open in a front end, and ipywidgets is installed.

    PREHAB_WIDGETS=1 or 0 in the environment decides for a front end that leaves no mark.  A run of
    the runner is never interactive.
    """
    if records.run_dir() or importlib.util.find_spec("ipywidgets") is None:
        return False
    if told := os.environ.get("PREHAB_WIDGETS"):
        return told != "0"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return any(mark in os.environ for mark in MARKS) or VSCODE in getattr(shell, "user_ns", ())


def play(draw: Callable, /, *, zoom: float = 1.0, **controls: Sequence):
    """Show a drawing under sliders, or once where nobody can move them.  The last line of a cell.

    draw(**values) -> (figure, pandas.DataFrame).  Its defaults are the static figure.  It is called
    long after the cell, when later cells may have given its letters other meanings: bind what it
    reads by further defaults (`M=M`).  Axes keep the places they have in the first figure, so
    limits should be fixed.
    controls: name -> the values it takes; words become a menu, all else a slider.  zoom: size of
    the moving picture beside the static one.
    Gives the table where the figure is static, for the notebook to show under it; None under
    sliders.
    Raises ValueError naming a control that `draw` has not, or whose default is none of its values.
    """
    start = _start(draw, controls)
    from IPython.display import display

    if interactive():
        display(_with_fallback(*panel(draw, start, controls, zoom)), raw=True)
        return None
    import matplotlib.pyplot as pyplot

    figure, table = draw()
    display(figure)
    pyplot.close(figure)
    return table


def _start(draw: Callable, controls: dict) -> dict:
    known = inspect.signature(draw).parameters
    for name, values in controls.items():
        if name not in known:
            raise ValueError(
                f"{draw.__name__} has no argument {name!r} to move: it has {', '.join(known) or 'none'}"
            )
        if known[name].default not in list(values):
            raise ValueError(
                f"{name}: the default of {draw.__name__} must be one of the values {list(values)}"
            )
    return {name: known[name].default for name in controls}


class Frames:
    """The pictures of a drawing, each made when it is first asked for: (PNG, table as HTML)."""

    def __init__(self, draw: Callable, zoom: float = 1.0):
        self.draw, self.zoom = draw, zoom
        self.made: dict[tuple, tuple[bytes, str]] = {}
        self.places: list | None = None

    def __call__(self, values: dict) -> tuple[bytes, str]:
        from matplotlib import rc_context

        key = tuple(values.items())
        if key not in self.made:
            with rc_context(
                {"axes.titley": 1.0}
            ):  # else ticks are measured twice, to keep titles clear of them
                figure, table = self.draw(**values)
            self.made[key] = self._png(figure), table.to_html(border=0)
        return self.made[key]

    def _png(self, figure) -> bytes:
        """One drawing pass, and a quick compression: `savefig` takes twice as long."""
        import matplotlib.pyplot as pyplot
        import numpy
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image

        canvas = FigureCanvasAgg(figure)
        figure.set_dpi(self.zoom * INLINE_DPI)
        if self.places:  # a layout of its own would cost a second pass, and panels would jump
            figure.set_layout_engine("none")
            for ax, place in zip(figure.axes, self.places, strict=True):
                ax.set_position(place)
        canvas.draw()
        self.places = self.places or [ax.get_position() for ax in figure.axes]
        pyplot.close(figure)
        content = io.BytesIO()
        Image.fromarray(numpy.asarray(canvas.buffer_rgba())).save(content, "PNG", compress_level=1)
        return content.getvalue()


def panel(draw: Callable, start: dict, controls: dict[str, Sequence], zoom: float = 1.0):
    """(sliders over a picture over its table, as one ipywidget; the PNG it begins with)."""
    import ipywidgets

    frames = Frames(draw, zoom)
    picture, numbers = ipywidgets.Image(format="png"), ipywidgets.HTML()
    picture.layout.object_fit = "contain"
    picture.layout.align_self = "flex-start"
    picture.layout.max_width = "100%"
    numbers.add_class("jp-RenderedHTMLCommon")  # tables as JupyterLab shows them
    moved = {name: _control(name, values, start[name]) for name, values in controls.items()}

    def show(_=None):
        try:
            picture.value, numbers.value = frames(
                {name: control.value for name, control in moved.items()}
            )
        except Exception as error:  # a front end swallows what a slider's callback raises
            numbers.value = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"

    for control in moved.values():
        control.observe(show, "value")
    show()
    return ipywidgets.VBox([*moved.values(), picture, numbers]), picture.value


def _control(name: str, values: Sequence, start):
    import ipywidgets

    options = dict(value=start, description=SIGNS.get(name, name.replace("_", " ")))
    if all(isinstance(value, str) for value in values):
        return ipywidgets.Dropdown(
            options=[(value.replace("_", " "), value) for value in values], **options
        )
    shown = [(f"{value:g}", value) for value in values]
    return ipywidgets.SelectionSlider(
        options=shown, layout=ipywidgets.Layout(width="32em"), **options
    )


def _with_fallback(box, png: bytes) -> dict:
    """What is displayed: the widget, and for whoever opens a saved copy without its kernel the
    picture it began with.
    """
    return box._repr_mimebundle_() | {"image/png": base64.b64encode(png).decode()}
