"""Exercises of notebook 08, cost: operations counted, the roofline's bound, a refresh shared out, a
rank for a speed-up.
"""

import math

from prehab_lib.exercises import Exercise, slips

# 8.1: operations of one fresh nuclear norm and its gradient


def _operations(m, n):
    p, q = min(m, n), max(m, n)
    return 4 * m * n * n + 6 * p * p * q + 9 * p**3


def _without_the_way_back(m, n):
    return _operations(m, n) - 2 * m * n * n


def _on_the_inputs_side(m, n):
    return 4 * m * n * n + 6 * n * n * m + 9 * n**3


def _on_the_larger_side(m, n):
    p, q = min(m, n), max(m, n)
    return 4 * m * n * n + 6 * q * q * p + 9 * q**3


def _multiplications_alone(m, n):
    p, q = min(m, n), max(m, n)
    return 2 * m * n * n + 3 * p * p * q + 9 * p**3


def _root_on_the_left(m, n):
    return _operations(m, n) - 4 * m * n * n + 4 * m * m * n


# 8.2: the least time that the machine's limits allow


def _least_seconds(operations, size, rate, bandwidth):
    return max(operations / rate, size / bandwidth)


# 8.3: a step, with a refresh every few


def _step(plain, fresh, held, every):
    return 1 + (fresh + (every - 1) * held) / (every * plain)


# 8.4: the largest rank that is so many times cheaper


def _rank(m, n, times):
    return math.floor(m * n / (times * (m + n)))


EXERCISES = {
    "8.1": Exercise(
        cases=[(768, 768), (3072, 768), (768, 3072), (11008, 4096)],
        withheld=[(1024, 4096), (5120, 1280)],
        solution=_operations,
        slips=slips(
            _without_the_way_back,
            "the gradient in M has to come back to W: P Lᵀ is a second product with n × n",
            _on_the_inputs_side,
            "the Gram may be taken on either side: the smaller one, p × p, is enough",
            _on_the_larger_side,
            "that decomposes the larger side: both Grams have the same eigenvalues above zero",
            _multiplications_alone,
            "a product counts its additions too: 2 a b c for (a × b)(b × c)",
            _root_on_the_left,
            "the root L is n × n, and W L takes 2 m n² operations, not 2 m² n",
            lambda m, n: 9 * min(m, n) ** 3,
            "that is the eigendecomposition alone: the five products around it count too",
        ),
    ),
    "8.2": Exercise(
        cases=[
            (2e9, 1e6, 1e11, 1e10),
            (1e6, 4e6, 1e11, 1e10),
            (3e9, 3e9, 1e11, 1e10),
            (5e8, 5e8, 1e9, 1e10),
        ],
        withheld=[(4e9, 2e8, 2e11, 4e10), (1e6, 8e8, 1e12, 2e11)],
        solution=_least_seconds,
        slips=slips(
            lambda operations, size, rate, bandwidth: operations / rate + size / bandwidth,
            "numbers are fetched while others are multiplied, so the slower of the two decides",
            lambda operations, size, rate, bandwidth: min(operations / rate, size / bandwidth),
            "both have to be done: the slower of the two decides, not the faster",
            lambda operations, size, rate, bandwidth: operations / rate,
            "that forgets the memory: what is multiplied has to be fetched",
            lambda operations, size, rate, bandwidth: size / bandwidth,
            "that forgets the arithmetic: what is fetched has to be multiplied",
            lambda operations, size, rate, bandwidth: min(rate, operations / size * bandwidth),
            "that is the rate that can be reached: the time is the operations divided by it",
        ),
    ),
    "8.3": Exercise(
        cases=[(10.0, 4.0, 0.5, 8), (2.0, 1.0, 0.1, 1), (5.0, 20.0, 1.0, 4), (1.0, 0.5, 0.0, 2)],
        withheld=[(3.0, 6.0, 0.2, 5)],
        solution=_step,
        slips=slips(
            lambda plain, fresh, held, every: 1 + fresh / (every * plain),
            "the steps in between are not free: they add the held gradient and ⟨D, W⟩",
            lambda plain, fresh, held, every: (fresh + (every - 1) * held) / (every * plain),
            "that is what prehab adds: the plain step under it counts as 1",
            lambda plain, fresh, held, every: 1 + (fresh + every * held) / (every * plain),
            "of so many steps one refreshes: the held gradient serves one step fewer",
            lambda plain, fresh, held, every: 1 + (fresh + (every - 1) * held) / plain,
            "that is what a whole round of steps adds to one: divide it among them",
            lambda plain, fresh, held, every: 1 + fresh / plain,
            "that is the step that refreshes: the mean over a round was asked for",
        ),
    ),
    "8.4": Exercise(
        cases=[(4096, 4096, 1), (11008, 4096, 1), (768, 3072, 2), (4096, 4096, 2.5), (100, 7, 4)],
        withheld=[(1024, 4096, 3), (640, 640, 2), (9, 9, 10)],
        solution=_rank,
        slips=slips(
            lambda m, n, times: math.floor(min(m, n) / times),
            "that shares out the singular values: a rank costs m + n, so half save nothing",
            lambda m, n, times: math.ceil(m * n / (times * (m + n))),
            "round down: one rank more is no longer so many times cheaper",
            lambda m, n, times: math.floor(times * m * n / (m + n)),
            "the other way round: the cheaper it is to be, the smaller the rank",
            lambda m, n, times: math.floor(m * n / (m + n)),
            "that is where it breaks even: it was to be so many times cheaper",
        ),
    ),
}
