"""Timing without times: a clock that ticks as told, power laws that are known, the order of the calls."""

import math

import pytest
import torch

from prehab_lib.report import timing


class Clock:
    """time.perf_counter that moves only when `work` says so."""

    def __init__(self):
        self.now, self.calls = 100.0, []

    def work(self, name, *seconds):
        """A callable that takes the next of `seconds` at each call, the last one for ever."""
        left = list(seconds)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    return clock


def test_alternatives_take_turns_after_a_warm_up(clock):
    times = timing.side_by_side({"a": clock.work("a", 9, 1, 2, 3), "b": clock.work("b", 9, 10)}, repeats=3, warmup=1)
    assert clock.calls == list("abababab")
    assert list(times.index) == ["a", "b"]
    assert times.seconds["a"] == [1, 2, 3] and times.seconds["b"] == [10, 10, 10]
    assert tuple(times.loc["a", ["median", "q1", "q3"]]) == (2, 1.5, 2.5)
    assert timing.side_by_side({"a": clock.work("a", 9, 1)}, repeats=2, warmup=0).seconds["a"] == [9, 1]


def test_a_ratio_is_taken_round_by_round(clock):
    """Both are slowed down in the second round: their quotient is not."""
    rounds = {"plain": clock.work("plain", 0, 1, 100, 1), "prehab": clock.work("prehab", 0, 2, 200, 4)}
    found = timing.ratios(timing.side_by_side(rounds, repeats=3), over="plain")
    assert found["median"].to_dict() == {"plain": 1, "prehab": 2}
    assert found.q3["prehab"] == 3
    with pytest.raises(ValueError, match="over = 'fast' is not known: choose one of plain, prehab"):
        timing.ratios(timing.side_by_side(rounds, repeats=1), over="fast")


def test_a_device_is_waited_for_before_and_after(clock, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "synchronize", clock.calls.append)
    for device, calls in (("cpu", ["a"]), ("cuda:1", ["cuda:1", "a", "cuda:1"]), ("mps", ["mps", "a", "mps"])):
        clock.calls.clear()
        timing.side_by_side({"a": clock.work("a", 1)}, repeats=1, warmup=0, device=device)
        assert clock.calls == calls


def test_what_cannot_be_timed_or_fitted_is_refused():
    for wrong in (dict(repeats=0), dict(repeats=1.5), dict(repeats=1, warmup=-1)):
        with pytest.raises(ValueError, match="repeats|warmup"):
            timing.side_by_side({"a": lambda: None}, **wrong)
    for sizes, seconds in (([1, 2], [1, 2]), ([1, 2, 2], [1, 2, 3]), ([1, 2, 3], [1, 2]), ([1, 2, 3], [1, 0, 2])):
        with pytest.raises(ValueError, match="three|above 0"):
            timing.fitted_exponent(sizes, seconds)


def test_bandwidth_counts_three_arrays_and_takes_the_best_round(monkeypatch):
    ticks = iter([0, 5, 0, 4, 0, 2, 0, 4, 0, 3, 0, 8])  # a warm-up and five rounds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    assert timing.bandwidth("cpu", torch.float64, bytes_each=1024) == 3 * 1024 / 2


def test_a_power_law_is_found_with_the_textbooks_standard_error():
    """Residuals (+d, -2d, +d) in logs at x = -1, 0, 1 leave slope 2 as it is; s² = 6 d² / 1, over Σ x² = 2."""
    sizes = [3, 10, 20, 50]
    for power in (-1.0, 0.0, 1.0, 2.5, 3.0):
        fit = timing.fitted_exponent(sizes, [0.7 * size**power for size in sizes])
        assert fit.exponent == pytest.approx(power, abs=1e-12) and fit.error < 1e-6
    d = 0.01
    sizes = [math.exp(x) for x in (-1, 0, 1)]
    seconds = [math.exp(2 * x + off) for x, off in ((-1, d), (0, -2 * d), (1, d))]
    fit = timing.fitted_exponent(sizes, seconds)
    assert fit.exponent == pytest.approx(2) and fit.error == pytest.approx(math.sqrt(3) * d)
