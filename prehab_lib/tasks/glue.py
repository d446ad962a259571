"""The eight GLUE tasks of Table III: what they ask, and how the paper scores and averages them."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    columns: tuple[str, ...]  # of text, one or two
    metric: str  # a key of `metrics.METRICS`
    labels: tuple[str, ...]  # names of the classes 0, 1, …; empty for a regression
    scored: dict[str, str]  # column of Table III -> the split it is scored on
    lr: float = 2e-5  # peak of the paper's fine-tuning, 3 epochs with a cosine schedule

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", *self.scored.values())


_ONE, _PAIR = ("sentence",), ("sentence1", "sentence2")
_ACCEPTABLE = ("unacceptable", "acceptable")
_DUPLICATE, _ENTAILS = ("not_duplicate", "duplicate"), ("entailment", "not_entailment")
_INFERENCE = ("entailment", "neutral", "contradiction")
_MNLI = {"MNLI-m": "validation_matched", "MNLI-mm": "validation_mismatched"}

# The hub's name of the configuration -> the task.
GLUE = {
    "cola": GlueTask(_ONE, "matthews", _ACCEPTABLE, {"CoLA": "validation"}, lr=5e-5),
    "sst2": GlueTask(_ONE, "accuracy", ("negative", "positive"), {"SST-2": "validation"}),
    "mrpc": GlueTask(_PAIR, "f1", ("not_equivalent", "equivalent"), {"MRPC": "validation"}),
    "rte": GlueTask(_PAIR, "accuracy", _ENTAILS, {"RTE": "validation"}),
    "stsb": GlueTask(_PAIR, "spearman", (), {"STS-B": "validation"}),
    "qnli": GlueTask(("question", "sentence"), "accuracy", _ENTAILS, {"QNLI": "validation"}),
    "qqp": GlueTask(("question1", "question2"), "f1", _DUPLICATE, {"QQP": "validation"}),
    "mnli": GlueTask(("premise", "hypothesis"), "accuracy", _INFERENCE, _MNLI),
}

# Table III: its tasks' columns, in its order.  A task of your own is in GLUE alone.
_PRINTED = ("cola", "sst2", "mrpc", "rte", "stsb", "qnli", "qqp", "mnli")
TABLE_3 = [GLUE[name].scored for name in _PRINTED]
COLUMNS = tuple(column for scored in TABLE_3 for column in scored)


def average(scores: Mapping[str, float], merged: bool = True) -> float:
    """Mean over tasks as Table III computes it: the two MNLI columns are merged first.

    merged=False: the plain mean, as in the table's 0 % row alone.  ValueError for missing columns.
    """
    missing = ", ".join(column for column in COLUMNS if column not in scores)
    if missing:
        raise ValueError(f"the average is over all columns of Table III: {missing} not scored")
    groups = TABLE_3 if merged else [[column] for column in COLUMNS]
    return fmean(fmean(float(scores[column]) for column in group) for group in groups)
