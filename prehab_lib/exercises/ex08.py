"""Exercises of notebook 08, cost: operations, the roofline, a refresh shared out, a speed-up."""

import math

from prehab_lib.exercises import load


def _operations(m, n, count=2):
    """count: operations of one step in a product, a multiplication and an addition."""
    p, q = min(m, n), max(m, n)
    return count * (2 * m * n * n + 3 * p * p * q) + 9 * p**3


def _seconds(operations, size, rate, bandwidth):
    return operations / rate, size / bandwidth


def _round(fresh, held, every):
    return fresh + (every - 1) * held


ANSWERS = {
    "8.1": dict(
        solution=_operations,
        without_the_way_back=lambda m, n: _operations(m, n) - 2 * m * n * n,
        on_the_inputs_side=lambda m, n: 4 * m * n * n + 6 * n * n * m + 9 * n**3,
        on_the_larger_side=lambda m, n: 4 * m * n * n + 6 * m * n * max(m, n) + 9 * max(m, n) ** 3,
        multiplications_alone=lambda m, n: _operations(m, n, count=1),
        root_on_the_left=lambda m, n: _operations(m, n) + 4 * m * n * (m - n),
        eigenvalues_alone=lambda m, n: 9 * min(m, n) ** 3,
    ),
    "8.2": dict(
        solution=lambda *machine: max(_seconds(*machine)),
        one_after_another=lambda *machine: sum(_seconds(*machine)),
        faster_decides=lambda *machine: min(_seconds(*machine)),
        memory_forgotten=lambda *machine: _seconds(*machine)[0],
        arithmetic_forgotten=lambda *machine: _seconds(*machine)[1],
        reachable_rate=lambda operations, size, rate, speed: min(rate, operations / size * speed),
    ),
    "8.3": dict(
        solution=lambda plain, fresh, held, every: 1 + _round(fresh, held, every) / every / plain,
        steps_between_free=lambda plain, fresh, held, every: 1 + fresh / (every * plain),
        addition_alone=lambda plain, fresh, held, every: _round(fresh, held, every) / every / plain,
        held_once_too_often=lambda plain, fresh, held, every: 1 + (fresh / every + held) / plain,
        whole_round=lambda plain, fresh, held, every: 1 + _round(fresh, held, every) / plain,
        refreshing_step=lambda plain, fresh, held, every: 1 + fresh / plain,
    ),
    "8.4": dict(
        solution=lambda m, n, times: math.floor(m * n / (times * (m + n))),
        share_of_rank=lambda m, n, times: math.floor(min(m, n) / times),
        rounded_up=lambda m, n, times: math.ceil(m * n / (times * (m + n))),
        other_way_round=lambda m, n, times: math.floor(times * m * n / (m + n)),
        break_even=lambda m, n, times: math.floor(m * n / (m + n)),
    ),
}
EXERCISES = load("ex08.yaml", ANSWERS)
