"""Exercises of notebook 04: a metric, a Gram without pads, the average of Table III."""

import math

import torch


def stored(gram, tokens, pads, p):
    """Float32 and whole numbers, as they are written."""
    return torch.tensor(gram), tokens, pads, torch.tensor(p)


def below(tp, tn, fp, fn):
    return math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) or 1.0


def tokens_only(gram, tokens, pads, p):
    return ((tokens + pads) * gram - pads * torch.outer(p, p)) / tokens


def average(scores):
    rest = [score for column, score in scores.items() if not column.startswith("MNLI")]
    return (sum(rest) + (scores["MNLI-m"] + scores["MNLI-mm"]) / 2) / (len(rest) + 1)
