"""GLUE's metrics, between -1 and 1 as the paper prints them: scikit-learn and SciPy do the
arithmetic.

A compressed model often says the same thing to every sentence.  Matthews and F1 are then 0 by
convention; a rank correlation does not exist.  It counts as 0 here, and the note says so: no NaN
ever reaches a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from prehab_lib.inputs import check_choice


@dataclass(frozen=True)
class Score:
    """value: what the table prints.  note: what a reader must know about it, or nothing."""

    value: float
    note: str = ""

    def __float__(self) -> float:
        return self.value


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1 of two; 0 where no row of class 1 is predicted or none is there."""
    return f1_score(labels, predictions, zero_division=0)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float | None:
    """Rank correlation, ties at their mean rank; None where one side is constant, without ranks."""
    if _constant(predictions) or _constant(labels):
        return None
    return spearmanr(predictions, labels).statistic


# Name -> fn(labels (N,), predictions (N,)) -> value, or None where it is undefined.
METRICS = {
    "matthews": matthews_corrcoef,  # CoLA
    "accuracy": accuracy_score,  # SST-2, RTE, QNLI, MNLI
    "f1": f1,  # MRPC, QQP
    "spearman": spearman,  # STS-B
}


def score(metric: str, predictions: Sequence, labels: Sequence) -> Score:
    """The metric of that name, higher is better, with a note where the predictions are constant or
    it is undefined.

    predictions, labels: N classes (whole numbers), or N real values for "spearman".  Raises
    ValueError for an unknown metric, sides of different length, no rows, values that are not
    finite, or a class other than 0 and 1 for "f1".
    """
    check_choice("metric", metric, METRICS)
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        sizes = f"{predictions.shape} and {labels.shape}"
        raise ValueError(f"a score needs as many predictions as labels, at least one, not {sizes}")
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError("NaN or infinite predictions or labels: look at the model's outputs")
    value, notes = METRICS[metric](labels, predictions), []
    if _constant(predictions):
        notes.append("the model says the same to every row")
    if value is None:
        notes.append(f"{metric} is undefined and counted as 0")
    return Score(float(value or 0), "; ".join(notes))


def _constant(values: np.ndarray) -> bool:
    """Equal up to float32's round-off, in which padding alone can make two outputs of a dead model
    differ.
    """
    return bool(np.ptp(values) <= 1e-6 * max(1.0, np.abs(values).max()))
