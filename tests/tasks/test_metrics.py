import warnings

import numpy as np
import pytest

from prehab_lib.tasks.metrics import METRICS, Score, score


def test_matthews_by_hand():
    # TP 2, TN 1, FP 1, FN 0: (2·1 - 1·0) / √(3·2·2·1) = 1/√3
    assert float(score("matthews", [1, 1, 1, 0], [1, 1, 0, 0])) == pytest.approx(3**-0.5)
    assert float(score("matthews", [0, 1], [1, 0])) == pytest.approx(-1)


def test_accuracy_by_hand():
    assert score("accuracy", [2, 0, 1, 1], [2, 0, 1, 0]) == Score(0.75)


def test_f1_by_hand():
    # precision 2/3, recall 2/4: 2 · (2/3 · 1/2) / (2/3 + 1/2) = 4/7
    assert float(score("f1", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0])) == pytest.approx(4 / 7)


def test_spearman_by_hand_with_a_tie():
    # ranks 1, 2, 3 against 1, 2.5, 2.5: covariance 1.5/3, variances 2/3 and 1.5/3
    assert float(score("spearman", [0.1, 0.2, 0.7], [1.0, 3.0, 3.0])) == pytest.approx(1.5 / (2 * 1.5) ** 0.5)
    assert float(score("spearman", [9.0, 4.0, 1.0], [1.0, 2.0, 30.0])) == pytest.approx(-1)


@pytest.mark.parametrize("metric", METRICS)
def test_constant_predictions_are_a_number_and_a_note(metric):
    labels = [0, 1, 1, 0] if metric != "spearman" else [0.0, 1.0, 2.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(metric, [0, 0, 0, 0], labels)
    assert np.isfinite(found.value) and "same to every row" in found.note
    assert found.value == (0.5 if metric == "accuracy" else 0.0)
    assert ("undefined and counted as 0" in found.note) == (metric == "spearman")


def test_round_off_is_no_ranking():
    assert "undefined" in score("spearman", [0.5, 0.5 + 1e-8, 0.5 - 1e-8], [1.0, 2.0, 3.0]).note
    assert score("spearman", [0.5, 0.501, 0.502], [1.0, 2.0, 3.0]).value == pytest.approx(1)


def test_constant_labels_leave_spearman_undefined_too():
    assert score("spearman", [0.3, 0.1], [1.0, 1.0]) == Score(0.0, "spearman is undefined and counted as 0")
    assert score("f1", [1, 0], [0, 0]) == Score(0.0)


def test_what_cannot_be_scored_is_named():
    with pytest.raises(ValueError, match="metric = 'bleu' is not known: choose one of matthews"):
        score("bleu", [1], [1])
    with pytest.raises(ValueError, match="as many predictions as labels"):
        score("accuracy", [1, 0], [1])
    with pytest.raises(ValueError, match="at least one"):
        score("accuracy", [], [])
    with pytest.raises(ValueError, match="NaN or infinite predictions"):
        score("spearman", [1.0, float("nan")], [1.0, 2.0])
    with pytest.raises(ValueError, match="F1 is that of class 1 of two: class 2"):
        score("f1", [2, 0], [1, 0])
