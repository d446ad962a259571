"""Timing to believe: alternatives that take turns (a, b, a, b, ...) meet the same machine."""

import time
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas
import torch

from prehab_lib.inputs import check_choice, check_whole

LARGE = 2**28  # bytes an array: several times the caches of any machine this runs on


def wait_for(device: str | torch.device = "cpu") -> None:
    """Return when the device has done all it was asked for: a GPU answers before it has worked."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def side_by_side(
    alternatives: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, device="cpu"
) -> pandas.DataFrame:
    """Seconds of each call, the alternatives taking turns; `warmup` rounds are not counted.

    A row a name: median, q1, q3, `seconds` (a list). ValueError for wrong counts.
    """
    check_whole(1, repeats=repeats)
    check_whole(0, warmup=warmup)
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(warmup + repeats):
        for name, run in alternatives.items():
            wait_for(device)
            started = time.perf_counter()
            run()
            wait_for(device)
            seconds[name].append(time.perf_counter() - started)
    counted = [values[warmup:] for values in seconds.values()]
    rows = [summary(values) | {"seconds": values} for values in counted]
    return pandas.DataFrame(rows, index=list(alternatives))


def ratios(times: pandas.DataFrame, over: str) -> pandas.DataFrame:
    """`summary` of all times over those of one, round by round. ValueError if it was not timed."""
    check_choice("over", over, times.index)
    below = np.array(times.seconds[over])
    rows = [summary(np.array(seconds) / below) for seconds in times.seconds]
    return pandas.DataFrame(rows, index=times.index)


def summary(values: Sequence[float]) -> dict[str, float]:
    """median, q1 and q3 of a few numbers; quartiles are interpolated."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": middle, "q1": low, "q3": high}


def bandwidth(device="cpu", dtype: torch.dtype = torch.float32, bytes_each: int = LARGE) -> float:
    """Bytes a second of memory, from the best of five sums a = a + 2 b.

    In place, three arrays move; a CPU would fetch another array c before it writes it.
    """
    a, b = torch.ones(2, bytes_each // dtype.itemsize, dtype=dtype, device=device)
    times = side_by_side({"sum": lambda: a.add_(b, alpha=2)}, repeats=5, device=device)
    return 3 * a.nbytes / min(times.seconds["sum"])


Fit = namedtuple("Fit", ["exponent", "error"])  # error: the exponent's standard error


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> Fit:
    """The power law seconds ≈ c · sizeᵉ through measured times: least squares in logarithms.

    The error tells how well a straight line fits these points, not larger ones. Raises ValueError
    for fewer than three different sizes (two have no error), or numbers that are not positive.
    """
    if len(sizes) != len(seconds) or len(set(sizes)) < 3:
        raise ValueError("fitted_exponent: give three different sizes or more, and a time for each")
    values = np.array([sizes, seconds], dtype=float)
    if not ((values > 0) & np.isfinite(values)).all():
        raise ValueError("fitted_exponent: sizes and times must be finite and above 0")
    (slope, _), covariance = np.polyfit(*np.log(values), 1, cov=True)
    return Fit(float(slope), float(covariance[0, 0] ** 0.5))
