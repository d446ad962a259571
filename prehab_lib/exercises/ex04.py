"""Exercises of notebook 04, prehab on BERT: a metric, a masked Gram, the average of Table III."""

import math

import torch

from prehab_lib.exercises import load


def _below(tp, tn, fp, fn):
    return math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) or 1.0


def _gram(X):
    return X.T @ X / len(X)


def _average(scores):
    rest = [score for column, score in scores.items() if not column.startswith("MNLI")]
    return (sum(rest) + (scores["MNLI-m"] + scores["MNLI-mm"]) / 2) / (len(rest) + 1)


ANSWERS = {
    "4.1": dict(
        solution=lambda tp, tn, fp, fn: (tp * tn - fp * fn) / _below(tp, tn, fp, fn),
        accuracy=lambda tp, tn, fp, fn: (tp + tn) / (tp + tn + fp + fn),
        f1=lambda tp, tn, fp, fn: 2 * tp / (2 * tp + fp + fn),
        without_root=lambda tp, tn, fp, fn: (tp * tn - fp * fn) / _below(tp, tn, fp, fn) ** 2,
        errors_added=lambda tp, tn, fp, fn: (tp * tn + fp * fn) / _below(tp, tn, fp, fn),
    ),
    "4.2": dict(
        arguments=lambda x, mask: (torch.tensor(x), torch.tensor(mask)),
        solution=lambda x, mask: _gram(x[mask.bool()]),
        pads_counted=lambda x, mask: _gram(x.flatten(0, 1)),
        mean_over_places=lambda x, mask: x[mask.bool()].T @ x[mask.bool()] / mask.numel(),
        centred=lambda x, mask: _gram(x[mask.bool()] - x[mask.bool()].mean(0)),
    ),
    "4.3": dict(
        solution=_average,
        mean_of_nine=lambda scores: sum(scores.values()) / len(scores),
        half_of_mnli=lambda scores: sum(v for k, v in scores.items() if k != "MNLI-mm") / 8,
        without_mnli=lambda scores: sum(v for k, v in scores.items() if "MNLI" not in k) / 7,
    ),
}
EXERCISES = load("ex04.yaml", ANSWERS)
