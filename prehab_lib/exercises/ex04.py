"""Exercises of notebook 04, prehab on BERT: a metric by hand, a masked Gram, and the average of
Table III.
"""

import math

import torch

from prehab_lib.exercises import Exercise, slips


def _below(tp, tn, fp, fn):
    return math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) or 1.0


def _matthews(tp, tn, fp, fn):
    return (tp * tn - fp * fn) / _below(tp, tn, fp, fn)


def _masked_gram(x, mask):
    X = x[mask.bool()]
    return X.T @ X / len(X)


def _over_places(x, mask):
    X = x[mask.bool()]
    return X.T @ X / mask.numel()


def _with_pads(x, mask):
    X = x.flatten(0, 1)
    return X.T @ X / len(X)


def _centred(x, mask):
    X = x[mask.bool()]
    X = X - X.mean(0)
    return X.T @ X / len(X)


def _average(scores):
    rest = [score for column, score in scores.items() if not column.startswith("MNLI")]
    return (sum(rest) + (scores["MNLI-m"] + scores["MNLI-mm"]) / 2) / (len(rest) + 1)


def _nine(*scores):
    names = ("CoLA", "SST-2", "MRPC", "RTE", "STS-B", "QNLI", "QQP", "MNLI-m", "MNLI-mm")
    return dict(zip(names, scores, strict=True))


_x = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [5.0, 5.0]], [[2.0, 0.0], [7.0, 1.0], [9.0, 9.0]]])
_mask = torch.tensor([[1, 1, 0], [1, 0, 0]])

EXERCISES = {
    "4.1": Exercise(
        cases=[(6, 3, 1, 2), (5, 5, 0, 0), (1, 1, 4, 4), (7, 0, 3, 0)],
        withheld=[(9, 2, 3, 4), (0, 8, 0, 2)],
        solution=_matthews,
        slips=slips(
            lambda tp, tn, fp, fn: (tp + tn) / (tp + tn + fp + fn),
            "that is accuracy: it rewards the commoner class",
            lambda tp, tn, fp, fn: 2 * tp / (2 * tp + fp + fn),
            "that is F1: it does not look at the true negatives",
            lambda tp, tn, fp, fn: (tp * tn - fp * fn) / _below(tp, tn, fp, fn) ** 2,
            "take the square root of the product below: a perfect classifier must give 1",
            lambda tp, tn, fp, fn: (tp * tn + fp * fn) / _below(tp, tn, fp, fn),
            "the errors are subtracted: guessing must give 0 on average",
        ),
    ),
    "4.2": Exercise(
        cases=[
            (_x, _mask),
            (_x.flip(0), _mask.flip(0)),
            (_x[:, :2], torch.ones(2, 2, dtype=torch.long)),
        ],
        withheld=[(2 * _x - 1, _mask.flip(1))],
        solution=_masked_gram,
        slips=slips(
            _with_pads,
            "pads are counted in: take the rows where the mask is 1",
            _over_places,
            "the sum is right: divide by the number of real tokens, not of places",
            _centred,
            "the Gram is not centred: no mean is taken off",
        ),
    ),
    "4.3": Exercise(
        cases=[
            (_nine(0.6, 0.9, 0.8, 0.7, 0.85, 0.9, 0.87, 0.8, 0.84),),
            (_nine(0.0, 0.5, 0.7, 0.5, 0.1, 0.5, 0.6, 0.3, 0.35),),
        ],
        withheld=[(_nine(0.3, 0.8, 0.6, 0.4, 0.2, 0.7, 0.5, 0.6, 0.2),)],
        solution=_average,
        slips=slips(
            lambda scores: sum(scores.values()) / len(scores),
            "the mean of nine columns counts MNLI twice: merge its two first",
            lambda scores: sum(v for k, v in scores.items() if k != "MNLI-mm") / 8,
            "both halves of MNLI count: take their mean, do not drop one",
            lambda scores: (sum(v for k, v in scores.items() if "MNLI" not in k)) / 7,
            "MNLI is missing: it counts as one task of eight",
        ),
    ),
}
