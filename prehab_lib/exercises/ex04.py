"""Exercises of notebook 04, prehab on BERT: a metric, a masked Gram, the average of Table III."""

import math

import torch


def batch(x, mask):
    """Float32 and whole numbers, as they are written."""
    return torch.tensor(x), torch.tensor(mask)


def below(tp, tn, fp, fn):
    return math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) or 1.0


def gram(X):
    return X.T @ X / len(X)


def average(scores):
    rest = [score for column, score in scores.items() if not column.startswith("MNLI")]
    return (sum(rest) + (scores["MNLI-m"] + scores["MNLI-mm"]) / 2) / (len(rest) + 1)
