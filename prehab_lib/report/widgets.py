"""Figures to move by hand: sliders where ipywidgets is there, else drawn once, as in a run."""

import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence

from prehab_lib.inputs import check_choice
from prehab_lib.report.plots import INLINE_DPI
from prehab_lib.runs import certificate


def interactive() -> bool:
    """Whether sliders show: not in a run, which would store them, nor with PREHAB_WIDGETS=0."""
    wanted = os.environ.get("PREHAB_WIDGETS") != "0" and certificate.run_dir() is None
    return wanted and importlib.util.find_spec("ipywidgets") is not None


def play(draw: Callable, /, *, zoom: float = 1.0, **controls: Sequence):
    """Show a drawing under sliders, or once where there are none; the last line of a cell.

    draw(**values) -> (figure, pandas.DataFrame). Its defaults are the static figure. It is called
    long after the cell, when names may mean something else: bind what it reads (`M=M`).
    controls: name -> the values it takes; words become a menu, all else a slider. zoom: size of
    the moving picture beside the static one. Gives the table of the static figure; None under
    sliders. Raises ValueError for a control that `draw` lacks, or whose default is no value of it.
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
        kind = ipywidgets.Dropdown if words else ipywidgets.SelectionSlider
        described = name.replace("lam", "λ")
        moved[name] = kind(options=shown, value=defaults[name], description=described)
    display(ipywidgets.interactive(show, **moved))
    return None
