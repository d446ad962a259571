"""Figures to move by hand: sliders where a front end listens, the same figure drawn once where none
does.

A kernel cannot ask whether somebody is watching.  It can see who started it: JupyterLab, Notebook,
Colab and VS Code leave a mark, papermill, nbclient and nbval leave none.  A stored notebook must
hold no widget, which would be an empty box in it, so without a mark there is only the figure, with
its table under it.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence

from prehab_lib.report.plots import INLINE_DPI
from prehab_lib.runs import certificate

SIGNS = {"lam": "λ"}  # what stands beside a slider, where it is not the control's name
MARKS = ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG")  # set by Jupyter's server, and by Colab
VSCODE = "__vsc_ipynb_file__"  # VS Code tells its kernel by this variable


def interactive() -> bool:
    """Whether sliders are of use: a notebook is open in a front end, and ipywidgets is installed.

    PREHAB_WIDGETS=1 or 0 in the environment decides for a front end that leaves no mark.  A run of
    the runner is never interactive.
    """
    if certificate.run_dir() or importlib.util.find_spec("ipywidgets") is None:
        return False
    wanted = os.environ.get("PREHAB_WIDGETS")
    if wanted:
        return wanted != "0"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return any(mark in os.environ for mark in MARKS) or VSCODE in getattr(shell, "user_ns", ())


def play(draw: Callable, /, *, zoom: float = 1.0, **controls: Sequence):
    """Show a drawing under sliders, or once where nobody can move them; the last line of a cell.

    draw(**values) -> (figure, pandas.DataFrame).  Its defaults are the static figure.  It is called
    long after the cell, when later cells may have given its letters other meanings: bind what it
    reads by further defaults (`M=M`).
    controls: name -> the values it takes; words become a menu, all else a slider.  zoom: size of
    the moving picture beside the static one.
    Gives the table of the static figure; None under sliders. Raises ValueError naming a control
    that `draw` has not, or whose default is none of its values.
    """
    arguments = inspect.signature(draw).parameters
    for name, values in controls.items():
        if name not in arguments:
            names = ", ".join(arguments) or "none"
            raise ValueError(f"{draw.__name__} has no argument {name!r} to move: it has {names}")
        if arguments[name].default not in list(values):
            allowed = f"must be one of the values {list(values)}"
            raise ValueError(f"{name}: the default of {draw.__name__} {allowed}")
    import matplotlib.pyplot as pyplot
    from IPython.display import display

    if not interactive():
        figure, table = draw()
        display(figure)
        pyplot.close(figure)
        return table
    import ipywidgets

    def show(**values) -> None:
        figure, table = draw(**values)
        with pyplot.rc_context({"savefig.dpi": zoom * INLINE_DPI}):
            display(figure, table)
        pyplot.close(figure)

    moved = {
        name: _control(name, values, arguments[name].default) for name, values in controls.items()
    }
    shown = ipywidgets.interactive_output(show, moved)
    display(ipywidgets.VBox([*moved.values(), shown]))
    return None


def _control(name: str, values: Sequence, start):
    import ipywidgets

    options = dict(value=start, description=SIGNS.get(name, name.replace("_", " ")))
    if all(isinstance(value, str) for value in values):
        words = [(value.replace("_", " "), value) for value in values]
        return ipywidgets.Dropdown(options=words, **options)
    shown = [(f"{value:g}", value) for value in values]
    wide = ipywidgets.Layout(width="32em")
    return ipywidgets.SelectionSlider(options=shown, layout=wide, **options)
