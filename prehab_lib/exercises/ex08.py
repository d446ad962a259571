"""Exercises of notebook 08, cost: operations counted, the roofline's bound, a refresh shared out, a
rank for a speed-up.
"""

import math

from prehab_lib.exercises import load

# 8.1: operations of one fresh nuclear norm and its gradient


def _operations(m, n):
    return 4 * m * n * n + _decomposition(min(m, n), max(m, n))


def _decomposition(p, q):
    """Of M through its Gram p × p, the products around it included."""
    return 6 * p * p * q + 9 * p**3


def _multiplications_alone(m, n):
    p, q = min(m, n), max(m, n)
    return 2 * m * n * n + 3 * p * p * q + 9 * p**3


# 8.2: the times of arithmetic and of memory


def _seconds(operations, size, rate, bandwidth):
    return operations / rate, size / bandwidth


# 8.3: what a refresh and the steps until the next one add


def _round(fresh, held, every):
    return fresh + (every - 1) * held


ANSWERS = {
    "8.1": dict(
        solution=_operations,
        without_the_way_back=lambda m, n: _operations(m, n) - 2 * m * n * n,
        on_the_inputs_side=lambda m, n: 4 * m * n * n + _decomposition(n, m),
        on_the_larger_side=lambda m, n: 4 * m * n * n + _decomposition(max(m, n), min(m, n)),
        multiplications_alone=_multiplications_alone,
        root_on_the_left=lambda m, n: 4 * m * m * n + _decomposition(min(m, n), max(m, n)),
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
