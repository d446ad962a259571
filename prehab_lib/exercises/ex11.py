"""Exercises of notebook 11, one arm: λ from a dose, what a cut costs in nats."""


def weight(dose, task, rank):
    return dose * task / rank
