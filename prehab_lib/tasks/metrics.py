"""GLUE's metrics, between -1 and 1 as the paper prints them; one that is undefined counts as 0."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from prehab_lib.inputs import check_choice


@dataclass(frozen=True)
class Score:
    value: float  # what the table prints
    note: str = ""  # what a reader must know about it

    def __float__(self) -> float:
        return self.value


# Name -> fn(labels (N,), predictions (N,)) -> value.
METRICS = {
    "matthews": matthews_corrcoef,  # CoLA
    "accuracy": accuracy_score,  # SST-2, RTE, QNLI, MNLI
    "f1": partial(f1_score, zero_division=0),  # MRPC, QQP: of class 1 of two
    "spearman": lambda labels, predictions: spearmanr(predictions, labels).statistic,  # STS-B
}


def score(metric: str, predictions: Sequence, labels: Sequence) -> Score:
    """The metric of that name, higher is better, noted where it is undefined or predictions equal.

    predictions, labels: N classes (whole numbers), or N real values for "spearman".  Raises
    ValueError for an unknown metric, other sizes, no rows, or values that are not finite.
    """
    check_choice("metric", metric, METRICS)
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        sizes = f"{predictions.shape} and {labels.shape}"
        raise ValueError(f"a score needs as many predictions as labels, at least one, not {sizes}")
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError("NaN or infinite predictions or labels: look at the model's outputs")
    constant = _constant(predictions)
    undefined = metric == "spearman" and (constant or _constant(labels))
    value = 0.0 if undefined else METRICS[metric](labels, predictions)
    notes = ["the model says the same to every row"] if constant else []
    if undefined:
        notes.append(f"{metric} is undefined and counted as 0")
    return Score(float(value), "; ".join(notes))


def _constant(values: np.ndarray) -> bool:
    """Equal up to float32's round-off: padding alone can make outputs of a dead model differ."""
    return bool(np.ptp(values) <= 1e-6 * max(1.0, np.abs(values).max()))
