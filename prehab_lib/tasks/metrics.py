"""GLUE's metrics, between -1 and 1 as the paper prints them: scikit-learn and SciPy do the
arithmetic.

A compressed model often says the same thing to every sentence.  Matthews and F1 are then 0 by
convention; a rank correlation does not exist.  It counts as 0 here, and the note says so: no NaN
ever reaches a table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Score:
    """value: what the table prints.  note: what a reader must know about it; empty where there is
    nothing to say.
    """

    value: float
    note: str = ""

    def __float__(self) -> float:
        return self.value


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation of two classes or more; 0 where either side knows one class only.
    Source: CoLA.
    """
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows predicted right.   Source: SST-2, RTE, QNLI, MNLI."""
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1 of two; 0 where no row of class 1 is predicted or none is there.   Source:
    MRPC, QQP.

    Raises ValueError for a class other than 0 and 1.
    """
    from sklearn.metrics import f1_score

    if strange := set(np.unique(np.concatenate([predictions, labels]))) - {0, 1}:
        raise ValueError(f"F1 is that of class 1 of two: class {min(strange)} has no place here")
    return float(f1_score(labels, predictions, zero_division=0))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Rank correlation, ties at their mean rank; None where one side is constant and so has no
    ranks.   Source: STS-B.
    """
    from scipy.stats import spearmanr

    if _constant(predictions) or _constant(labels):
        return None
    return float(spearmanr(predictions, labels).statistic)


# Name -> fn(predictions (N,), labels (N,)) -> value, or None where it is undefined.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float | None]] = {
    "matthews": matthews,
    "accuracy": accuracy,
    "f1": f1,
    "spearman": spearman,
}


def score(metric: str, predictions: Sequence, labels: Sequence) -> Score:
    """The metric of that name, higher is better, with a note where the predictions are constant or
    it is undefined.

    predictions, labels: N classes (whole numbers), or N real values for "spearman".
    Raises ValueError for an unknown metric, for sides of different length, no rows, or values that
    are not finite.
    """
    if metric not in METRICS:
        raise ValueError(f"metric = {metric!r} is not known: choose one of {', '.join(METRICS)}")
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(
            f"a score needs as many predictions as labels and at least one, not {predictions.shape} and {labels.shape}"
        )
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise ValueError(
            "NaN or infinite predictions or labels cannot be scored: look at the model's outputs"
        )
    value, notes = METRICS[metric](predictions, labels), []
    if _constant(predictions):
        notes.append("the model says the same to every row")
    if value is None:
        notes.append(f"{metric} is undefined and counted as 0")
    return Score(value or 0.0, "; ".join(notes))


def _constant(values: np.ndarray) -> bool:
    """Equal up to float32's round-off, in which padding alone can make two outputs of a dead model
    differ.
    """
    return bool(np.ptp(values) <= 1e-6 * max(1.0, np.abs(values).max()))
