import warnings

import numpy as np
import pytest

from prehab_lib.report import paper
from prehab_lib.tasks import data
from prehab_lib.tasks.glue import COLUMNS, GLUE, HUB, average
from prehab_lib.tasks.metrics import METRICS, Score, score
from tests.tasks.helpers import refuses


def test_the_table_is_the_papers_and_every_task_has_its_source():
    table = paper.table("III")
    printed = [name for name in dict.fromkeys(table.dataset) if not name.endswith("Average")]
    assert list(COLUMNS) == [name.removeprefix("GLUE dev / ") for name in printed]
    metrics = dict(zip(table.dataset, table.metric, strict=True))
    for name, task in GLUE.items():
        assert task.metric in METRICS, name
        assert len(task.labels) == {"stsb": 0, "mnli": 3}.get(name, 2), name
        for column in task.scored:
            assert metrics[f"GLUE dev / {column}"].startswith(task.metric), column
        source = data.DATASETS[f"glue/{name}"]
        assert (source.hub, source.config) == (HUB, name)
        assert set(source.splits) == set(task.splits) and set(source.columns) == {*task.columns, "label"}, name


def test_the_papers_average_by_hand_and_as_printed():
    scores = dict.fromkeys(COLUMNS, 0.5) | {"MNLI-m": 0.7, "MNLI-mm": 0.9}
    assert average(scores) == pytest.approx((7 * 0.5 + 0.8) / 8)
    assert average(scores, merged=False) == pytest.approx((7 * 0.5 + 1.6) / 9)

    def printed_row(method, removed):
        return {column: paper.value("III", method, removed, dataset=column) for column in (*COLUMNS, "Average")}

    row, dense = printed_row("prehab", 0.2), printed_row("original", 0.0)
    assert average(row) == pytest.approx(row["Average"], abs=1.1e-3)
    assert average(dense, merged=False) == pytest.approx(dense["Average"], abs=6e-4)
    assert abs(average(dense) - dense["Average"]) > 1.5e-3
    refuses("MNLI-m, MNLI-mm not scored", average, dict.fromkeys(COLUMNS[:-2], 0.5))


def test_metrics_by_hand():
    # TP 2, TN 1, FP 1, FN 0: (2·1 - 1·0) / √(3·2·2·1) = 1/√3
    assert float(score("matthews", [1, 1, 1, 0], [1, 1, 0, 0])) == pytest.approx(3**-0.5)
    assert float(score("matthews", [0, 1], [1, 0])) == pytest.approx(-1)
    assert score("accuracy", [2, 0, 1, 1], [2, 0, 1, 0]) == Score(0.75)
    # precision 2/3, recall 2/4: 2 · (2/3 · 1/2) / (2/3 + 1/2) = 4/7
    assert float(score("f1", [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0])) == pytest.approx(4 / 7)
    # ranks 1, 2, 3 against 1, 2.5, 2.5: covariance 1.5/3, variances 2/3 and 1.5/3
    assert float(score("spearman", [0.1, 0.2, 0.7], [1.0, 3.0, 3.0])) == pytest.approx(1.5 / (2 * 1.5) ** 0.5)
    assert float(score("spearman", [9.0, 4.0, 1.0], [1.0, 2.0, 30.0])) == pytest.approx(-1)


def test_constant_predictions_or_labels_are_a_number_and_a_note():
    for metric in METRICS:
        labels = [0, 1, 1, 0] if metric != "spearman" else [0.0, 1.0, 2.0, 0.0]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = score(metric, [0, 0, 0, 0], labels)
        assert np.isfinite(found.value) and "same to every row" in found.note, metric
        assert found.value == (0.5 if metric == "accuracy" else 0.0), metric
        assert ("undefined and counted as 0" in found.note) == (metric == "spearman"), metric
    assert "undefined" in score("spearman", [0.5, 0.5 + 1e-8, 0.5 - 1e-8], [1.0, 2.0, 3.0]).note  # round-off
    assert score("spearman", [0.5, 0.501, 0.502], [1.0, 2.0, 3.0]).value == pytest.approx(1)
    assert score("spearman", [0.3, 0.1], [1.0, 1.0]) == Score(0.0, "spearman is undefined and counted as 0")
    assert score("f1", [1, 0], [0, 0]) == Score(0.0)


def test_what_cannot_be_scored_is_named():
    for metric, predictions, labels, said in (
        ("bleu", [1], [1], "metric = 'bleu' is not known: choose one of matthews"),
        ("accuracy", [1, 0], [1], "as many predictions as labels"),
        ("accuracy", [], [], "at least one"),
        ("spearman", [1.0, float("nan")], [1.0, 2.0], "NaN or infinite predictions"),
        ("f1", [2, 0], [1, 0], "multiclass"),
    ):
        refuses(said, score, metric, predictions, labels)
