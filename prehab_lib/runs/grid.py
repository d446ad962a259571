"""The grid of a params file: one notebook, a run for every combination of values.

    grid: {task: [cola, sst2, mrpc], seed: 0..4}   # 15 runs; 0..4 is 0, 1, 2, 3, 4
    grid: [{arm: [control, prehab], order: 0..2}, {arm: [other], order: [0]}]   # 6 runs, then 1

A run's name says which it is: `04_bert_glue.cola` for one parameter of text, else
`04_bert_glue.task=cola,seeds=0`. `seed` may stand for `seeds`: each run gets a list of one.
"""

import hashlib
import itertools
import json
import math
import re
from pathlib import Path

from prehab_lib.tasks import parameters

KEY = "grid"  # reserved in params files, so no parameter of a notebook
MOST = 1000  # runs of one notebook: more is a mistyped bound
_RANGE = re.compile(r"\s*([-+]?\d+)\s*\.\.\s*([-+]?\d+)\s*")
_WORD, _SUFFIX = 24, 64  # characters of a value and of everything that follows the notebook's name


def expand(notebook: Path, values: dict, overrides: dict, where: str, axes=None) -> list[tuple]:
    """What each run adds to the notebook's name ("" without a grid), and its checked parameters.

    values: content of a params file, `where` its name for messages. overrides, axes: parameters and
    a grid from the command line. They stand for what the file gives a parameter, in a grid or not.
    Raises ValueError, one sentence, for a grid that is none, an unknown or doubled parameter, more
    than MOST runs, two runs of one name, or values that the notebook refuses.
    """
    known = parameters.read(notebook)
    plain = dict(values)
    if isinstance(plain.get(KEY), list):
        return _several(notebook, plain, overrides, where, axes)
    filed = _axes(plain.pop(KEY), f"{where}: {KEY}", known) if KEY in plain else {}
    typed = _axes(axes, f"--{KEY}", known) if axes else {}
    both = [f"{where}: {name} stands in the grid and outside it" for name in filed if name in plain]
    both += [f"{name} stands in -p and in --{KEY}" for name in typed if name in overrides]
    if both:
        raise ValueError(f"{both[0]}: keep one of them")
    grid = filed | typed
    grid |= {name: [value] for name, value in overrides.items() if name in grid}
    runs = math.prod(len(listed) for listed in grid.values())
    if runs > MOST:
        raise ValueError(f"{where}: the grid makes {runs} runs, more than {MOST}")
    base = {name: value for name, value in (plain | overrides).items() if name not in grid}
    parameters.resolve(notebook, base)  # what is wrong outside the grid is not the grid's fault
    expanded = {}
    for point in itertools.product(*grid.values()):
        try:
            params = parameters.resolve(notebook, base | dict(zip(grid, point, strict=True)))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        name = suffix({name: params[name] for name in grid})
        if name.casefold() in expanded:  # not every file system tells upper from lower case
            raise ValueError(f"{where}: the grid makes two runs that are called {name}")
        expanded[name.casefold()] = name, params
    return list(expanded.values())


def _several(notebook: Path, values: dict, overrides: dict, where: str, axes) -> list[tuple]:
    """`expand` of a list of grids, one after another; a run that two of them make is refused."""
    runs: list[tuple] = []
    for one in values[KEY] or [None]:
        runs += expand(notebook, values | {KEY: one}, overrides, where, axes)
    names = [name.casefold() for name, _ in runs]
    for name in names:
        if names.count(name) > 1 and not (axes or overrides):
            raise ValueError(f"{where}: two grids make the run {name}: keep it in one of them")
    return list({name: (name, params) for name, params in runs}.values())


def _axes(grid, where: str, known: dict) -> dict[str, list]:
    """Parameter of the notebook -> the values it takes."""
    if not isinstance(grid, dict) or not grid or not all(isinstance(name, str) for name in grid):
        must = "must map parameters to lists of values, as in {task: [cola, sst2], seed: 0..4}"
        raise ValueError(f"{where} {must}")
    axes = {name: _values(value, f"{where}: {name} = {value!r}") for name, value in grid.items()}
    if "seed" in axes and "seed" not in known and "seeds" in known:
        if "seeds" in axes:
            raise ValueError(f"{where}: seed and seeds are one parameter: keep one of them")
        axes["seeds"] = [[seed] for seed in axes.pop("seed")]
    return axes


def _values(value, where: str) -> list:
    """The list itself, or the whole numbers of a range, both ends included."""
    bounds = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if bounds:
        first, last = int(bounds[1]), int(bounds[2])
        if first > last:
            raise ValueError(f"{where}: a range goes from smaller to larger")
        if last - first >= MOST:
            raise ValueError(f"{where} makes more than {MOST} runs")
        return list(range(first, last + 1))
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: give a list of values, or a range of whole numbers like 0..4")
    return value


def suffix(point: dict) -> str:
    """What a run's name adds for its values: one path component of at most 64 plain characters."""
    words = {}
    for name, value in point.items():
        alone = value[0] if isinstance(value, list) and len(value) == 1 else value
        words[name] = _short(alone if isinstance(alone, str) else json.dumps(alone), _WORD)
    if not words or (len(words) == 1 and isinstance(*point.values(), str)):
        return "".join(words.values())
    return _short(",".join(f"{name}={word}" for name, word in words.items()), _SUFFIX, "=,")


def _short(text: str, most: int, allowed: str = "") -> str:
    """The text where every file system takes it; else its plain end, and a hash of the whole."""
    safe = rf"[A-Za-z0-9_+\-{allowed}.]*[A-Za-z0-9_+\-{allowed}]"  # no dot at the end
    if len(text) <= most and re.fullmatch(safe, text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    last = text.rstrip("/").rpartition("/")[2]  # of a path or a hub name, the part that tells
    plain = re.sub(rf"[^A-Za-z0-9_+{allowed}.]+", "-", last)[: most - 8].strip("-.=,")
    return f"{plain}-{digest}" if plain else digest
