import pytest

from prehab_lib.report import paper
from prehab_lib.tasks import data
from prehab_lib.tasks.glue import COLUMNS, GLUE, HUB, average, task_named
from prehab_lib.tasks.metrics import METRICS


def test_the_table_is_the_papers():
    printed = [name for name in dict.fromkeys(paper.table("III").dataset) if not name.endswith("Average")]
    assert list(COLUMNS) == [name.removeprefix("GLUE dev / ") for name in printed]
    metrics = dict(zip(paper.table("III").dataset, paper.table("III").metric, strict=True))
    for task in GLUE.values():
        assert task.metric in METRICS
        for column in task.scored:
            assert metrics[f"GLUE dev / {column}"].startswith(task.metric)


def test_sizes_of_the_heads():
    assert {name: task.outputs for name, task in GLUE.items() if task.outputs != 2} == {"stsb": 1, "mnli": 3}
    assert GLUE["mnli"].splits == ("train", "validation_matched", "validation_mismatched")


def test_every_task_has_a_source_with_its_columns():
    for name, task in GLUE.items():
        source = data.DATASETS[f"glue/{name}"]
        assert (source.hub, source.config, source.folder) == (HUB, name, f"glue/{name}")
        assert set(source.splits) == set(task.splits) and set(source.columns) == {*task.columns, "label"}


def test_the_papers_average_by_hand():
    scores = dict.fromkeys(COLUMNS, 0.5) | {"MNLI-m": 0.7, "MNLI-mm": 0.9}
    assert average(scores) == pytest.approx((7 * 0.5 + 0.8) / 8)
    assert average(scores, merged=False) == pytest.approx((7 * 0.5 + 1.6) / 9)


def printed_row(method, removed):
    return {column: paper.value("III", method, removed, dataset=column) for column in (*COLUMNS, "Average")}


def test_the_printed_averages_recompute():
    row = printed_row("prehab", 0.2)
    assert average(row) == pytest.approx(row["Average"], abs=1.1e-3)
    dense = printed_row("original", 0.0)
    assert average(dense, merged=False) == pytest.approx(dense["Average"], abs=6e-4)
    assert abs(average(dense) - dense["Average"]) > 1.5e-3


def test_an_average_over_other_tasks_is_refused():
    with pytest.raises(ValueError, match="MNLI-m, MNLI-mm not scored"):
        average(dict.fromkeys(COLUMNS[:-2], 0.5))


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="task = 'wnli' is no GLUE task of the paper: choose one of cola, sst2"):
        task_named("wnli")
