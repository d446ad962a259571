"""Figures to move by hand: sliders where a front end listens, the same figure drawn once elsewhere.

A kernel cannot ask whether somebody is watching, but JupyterLab, Notebook, Colab and VS Code leave
a mark; papermill, nbclient and nbval leave none. A stored notebook must hold no widget, which would
be an empty box in it, so without a mark there is only the figure, with its table under it.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence

from prehab_lib.inputs import check_choice
from prehab_lib.report.plots import INLINE_DPI
from prehab_lib.runs import certificate

SIGNS = {"lam": "λ"}  # what stands beside a slider, where it is not the control's name
MARKS = ("JPY_SESSION_NAME", "COLAB_RELEASE_TAG")  # set by Jupyter's server, and by Colab
VSCODE = "__vsc_ipynb_file__"  # VS Code tells its kernel by this variable


def interactive() -> bool:
    """Whether sliders are of use: a notebook is open in a front end, and ipywidgets is installed.

    PREHAB_WIDGETS=1 or 0 in the environment decides for a front end that leaves no mark. A run of
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

    draw(**values) -> (figure, pandas.DataFrame). Its defaults are the static figure. It is called
    long after the cell, when names may mean something else: bind what it reads (`M=M`).
    controls: name -> the values it takes; words become a menu, all else a slider. zoom: size of
    the moving picture beside the static one.
    Gives the table of the static figure; None under sliders. Raises ValueError naming a control
    that `draw` has not, or whose default is none of its values.
    """
    defaults = {name: one.default for name, one in inspect.signature(draw).parameters.items()}
    for name, values in controls.items():
        check_choice(f"argument of {draw.__name__}", name, defaults)
        check_choice(f"default of {name}", defaults[name], values)
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

    moved = {}
    for name, values in controls.items():
        words = all(isinstance(value, str) for value in values)
        shown = [(value.replace("_", " ") if words else f"{value:g}", value) for value in values]
        described = SIGNS.get(name, name.replace("_", " "))
        options = {"options": shown, "value": defaults[name], "description": described}
        if not words:
            options["layout"] = ipywidgets.Layout(width="32em")
        kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
        moved[name] = kind(**options)
    display(ipywidgets.VBox([*moved.values(), ipywidgets.interactive_output(show, moved)]))
    return None
