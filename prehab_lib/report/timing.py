"""Timing that can be believed: alternatives take turns in one process, and every round counts.

Other work on a machine, its temperature and its caches change from second to second. Alternatives
that take turns (a, b, c, a, b, c, ...) meet the same machine, so their ratio, taken round by round,
is steadier than either time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas
import torch

from prehab_lib.inputs import check_choice, check_whole

LARGE = 2**28  # bytes an array: several times the caches of any machine this runs on


def wait_for(device: str | torch.device = "cpu") -> None:
    """Return when the device has done all it was asked for: a GPU answers before it has worked."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def side_by_side(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, device="cpu"
) -> pandas.DataFrame:
    """Seconds of each call, the alternatives taking turns; `warmup` rounds are not counted.

    One row a name: median, q1 and q3 (quartiles), and `seconds`, the list of all rounds. Raises
    ValueError for no alternative, or a number of rounds that is not whole and positive.
    """
    check_whole(1, repeats=repeats)
    check_whole(0, warmup=warmup)
    if not alternatives:
        raise ValueError("side_by_side: there is nothing to time, give {name: callable}")
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(warmup + repeats):
        for name, run in alternatives.items():
            wait_for(device)
            started = time.perf_counter()
            run()
            wait_for(device)
            seconds[name].append(time.perf_counter() - started)
    counted = {name: values[warmup:] for name, values in seconds.items()}
    rows = {name: summary(values) | {"seconds": values} for name, values in counted.items()}
    return pandas.DataFrame.from_dict(rows, orient="index")


def ratios(times: pandas.DataFrame, over: str) -> pandas.DataFrame:
    """Each alternative of `side_by_side` over one of them, round by round, as `summary`.

    Raises ValueError for a name that was not timed.
    """
    check_choice("over", over, times.index)
    below = np.array(times.seconds[over])
    rows = {name: summary(np.array(values) / below) for name, values in times.seconds.items()}
    return pandas.DataFrame.from_dict(rows, orient="index")


def summary(values: Sequence[float]) -> dict[str, float]:
    """median, q1 and q3 of a few numbers; quartiles are interpolated."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q1": low, "q3": high}


def bandwidth(device="cpu", dtype: torch.dtype = torch.float32, bytes_each: int = LARGE) -> float:
    """Bytes a second between memory and the device: the triad c = a + 2 b beyond the caches.

    Three arrays move, as the STREAM benchmark counts; that a CPU may read c before it writes it is
    not counted. The best of five, because a limit is asked for.
    """
    count = bytes_each // dtype.itemsize
    a, b, c = (torch.ones(count, dtype=dtype, device=device) for _ in range(3))
    triad = {"triad": lambda: torch.add(a, b, alpha=2, out=c)}
    times = side_by_side(triad, repeats=5, device=device)
    return 3 * count * dtype.itemsize / min(times.seconds["triad"])


class Fit(NamedTuple):
    """seconds ≈ factor · sizeᵉˣᵖᵒⁿᵉⁿᵗ; error: the exponent's standard error."""

    exponent: float
    error: float
    factor: float


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
    """The power law through measured times: least squares in logarithms.

    The error tells how well a straight line fits these points, not larger ones. Raises ValueError
    for fewer than three different sizes (two have no error), or numbers that are not positive.
    """
    if len(sizes) != len(seconds) or len(set(sizes)) < 3:
        rest = f"a time for each, not {list(sizes)}"
        raise ValueError(f"fitted_exponent: give three different sizes or more, and {rest}")
    values = np.array([*sizes, *seconds], dtype=float)
    if not ((values > 0) & np.isfinite(values)).all():
        raise ValueError("fitted_exponent: sizes and times must be finite and above 0")
    x, y = np.log(values).reshape(2, -1)
    (slope, level), covariance = np.polyfit(x, y, 1, cov=True)
    return Fit(float(slope), float(covariance[0, 0] ** 0.5), float(np.exp(level)))
