"""The grid of a params file: one notebook, a run for every combination of values.

    grid: {task: [cola, sst2, mrpc], seed: 0..4}   # 15 runs; 0..4 is 0, 1, 2, 3, 4

Each run has parameters, key, log and folder of its own, and a name that says which it is:
`04_bert_glue.cola` for one parameter of text, `04_bert_glue.task=cola,seed=0` else.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection
from itertools import product
from pathlib import Path

from prehab_lib.tasks import parameters

KEY = "grid"  # reserved in params files, so no parameter of a notebook
MOST = 1000  # runs of one notebook: more is a mistyped bound
_RANGE = re.compile(r"\s*([-+]?\d+)\s*\.\.\s*([-+]?\d+)\s*")
_WORD, _SUFFIX = 24, 64  # characters of a value and of everything that follows the notebook's name


def expand(
    notebook: Path, values: dict, overrides: dict, where: str, axes: dict | None = None
) -> list[tuple[str, dict]]:
    """What each run adds to the notebook's name ("" without a grid), and its parameters, resolved
    and checked.

    values: content of a params file, `where` its name for messages. overrides: parameters from the
    command line; one that is in the grid stands for its values there. axes: a grid from the command
    line; its values stand for what the params file gives the same parameter, in a grid or not.
    Raises ValueError, one sentence, for a grid that is none, an unknown or doubled parameter or
    value, more than MOST runs, or values that the notebook refuses.
    """
    if KEY in overrides:
        raise ValueError(
            f"-p {KEY}: a grid is written in params/NN_name.PROFILE.yaml or as --{KEY}, -p gives one value"
        )
    known, typed = parameters.read(notebook), axes or {}
    plain = {name: value for name, value in values.items() if name != KEY}
    base = parameters.resolve(notebook, plain)
    listed: dict[str, list] = {}
    if KEY in values:
        if KEY in known:
            raise ValueError(
                f'{where}: {KEY} is ambiguous: {notebook.stem} has a parameter "{KEY}", rename that'
            )
        listed = _axes(notebook, plain, values[KEY], f"{where}: {KEY}")
    if typed:
        if both := [name for name in typed if {name, _target(name, known)} & set(overrides)]:
            raise ValueError(f"{both[0]} stands in -p and in --{KEY}: keep one of them")
        replaced = {_target(name, known) for name in typed}
        plain = {name: value for name, value in plain.items() if name not in replaced}
        listed = {
            name: read for name, read in listed.items() if _target(name, known) not in replaced
        }
        listed |= _axes(notebook, plain, typed, f"--{KEY}", math.prod(map(len, listed.values())))
    if overrides:
        given = {name: value for name, value in overrides.items() if name not in listed}
        given |= {
            name: value
            for one in listed
            if one in overrides
            for name, value in _set(one, overrides[one], known)
        }
        base = parameters.resolve(notebook, plain | given)
        listed = {
            name: _fixed(name, base, known) if _target(name, known) in given else listed[name]
            for name in listed
        }
    return [
        (
            suffix(point),
            base
            | {name: value for axis in point for name, value in _set(axis, point[axis], known)},
        )
        for point in _points(listed)
    ]


def _target(axis: str, known: Collection[str]) -> str:
    """The parameter that an axis sets: of its own name, or `seeds` for `seed` where the notebook
    has only that.
    """
    return "seeds" if axis == "seed" and axis not in known and "seeds" in known else axis


def _set(axis: str, value, known: Collection[str]) -> list[tuple[str, object]]:
    """The parameter that a value of an axis sets, and to what."""
    target = _target(axis, known)
    return [(target, value if target == axis or isinstance(value, list) else [value])]


def _fixed(axis: str, base: dict, known: Collection[str]) -> list:
    """The one value that is left of an axis whose parameter the command line sets."""
    value = base[_target(axis, known)]
    return value if _target(axis, known) != axis and len(value) == 1 else [value]


def _points(axes: dict[str, list]) -> list[dict]:
    """Every combination of the values."""
    return [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]


def _axes(notebook: Path, plain: dict, grid, where: str, times: int = 1) -> dict[str, list]:
    """Axis -> its values, as the notebook reads them. times: runs that other axes make for each of
    them.
    """
    known = parameters.read(notebook)
    if not isinstance(grid, dict) or not grid or not all(isinstance(name, str) for name in grid):
        raise ValueError(
            f"{where} must map parameters to lists of values, as in {{task: [cola, sst2], seed: 0..4}}"
        )
    targets = [_target(name, known) for name in grid]
    if both := [name for name, target in zip(grid, targets, strict=True) if target in plain]:
        raise ValueError(f"{where}: {both[0]} also stands outside the grid: keep one of them")
    if len(set(targets)) < len(targets):
        raise ValueError(
            f"{where}: seed and seeds set the same parameter of {notebook.stem}: keep one of them"
        )
    listed = {name: _values(value, f"{where}: {name}") for name, value in grid.items()}
    if (runs := times * math.prod(map(len, listed.values()))) > MOST:
        raise ValueError(f"{where} makes {runs} runs, more than {MOST}: is a bound mistyped?")
    try:
        read = {
            name: [_read(notebook, plain, name, value) for value in values]
            for name, values in listed.items()
        }
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for name, values in read.items():
        texts = [json.dumps(value, sort_keys=True) for value in values]
        if twice := [
            value for value, text in zip(values, texts, strict=True) if texts.count(text) > 1
        ]:
            raise ValueError(f"{where}: {name} has {twice[0]!r} twice")
    if len({suffix(point).casefold() for point in _points(read)}) < math.prod(
        map(len, read.values())
    ):
        raise ValueError(
            f"{where}: two runs would share a folder, as they differ in upper and lower case alone"
        )
    return read


def _read(notebook: Path, plain: dict, axis: str, value):
    """The value as the notebook reads it. Raises ValueError where it refuses it."""
    ((target, given),) = _set(axis, value, parameters.read(notebook))
    read = parameters.resolve(notebook, plain | {target: given})[target]
    return read if target == axis else value


def _values(value, where: str):
    """The list itself, or the whole numbers of a range, both ends included."""
    bounds = _RANGE.fullmatch(value) if isinstance(value, str) else None
    if bounds:
        first, last = map(int, bounds.groups())
        if first > last:
            raise ValueError(
                f"{where} = {value}: a range goes from its smaller to its larger number"
            )
        if last - first >= MOST:
            raise ValueError(
                f"{where} = {value} makes {last - first + 1} runs, more than {MOST}: is a bound mistyped?"
            )
        return range(first, last + 1)
    if not isinstance(value, list):
        raise ValueError(
            f"{where} = {value!r}: give a list of values, or a range of whole numbers such as 0..4"
        )
    if not value:
        raise ValueError(f"{where} has no values: give at least one, or leave it out")
    return value


def suffix(point: dict) -> str:
    """What a run's name adds for its values: one path component, at most 64 plain characters; ""
    for no values.
    """
    if not point:
        return ""
    words = {
        name: _short(value if isinstance(value, str) else json.dumps(value), _WORD)
        for name, value in point.items()
    }
    if len(point) == 1 and isinstance(*point.values(), str):
        return "".join(words.values())
    return _short(",".join(f"{name}={word}" for name, word in words.items()), _SUFFIX, "=,")


def _short(text: str, most: int, allowed: str = "") -> str:
    """The text where every file system takes it as it is; else its end in plain characters, and a
    hash of the whole.
    """
    if len(text) <= most and re.fullmatch(
        rf"[A-Za-z0-9_+\-{allowed}.]*[A-Za-z0-9_+\-{allowed}]", text
    ):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:6]
    last = text.rstrip("/").rpartition("/")[2]  # of a path or a hub name, the part that tells
    plain = re.sub(rf"[^A-Za-z0-9_+{allowed}.]+", "-", last)[: most - 8].strip("-.=,")
    return f"{plain}-{digest}" if plain else digest
