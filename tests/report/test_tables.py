"""Tables: mean and spread over seeds beside the paper's numbers, refused without a control row."""

import re
import statistics

import pytest

from prehab_lib.report import tables
from prehab_lib.tasks import glue

ABOUT = {"model": "tiny ViT", "data": "digit pairs"}


def record(method, value, seed=0, removed=0.4, control=False, **extra):
    row = dict(method=method, removed=removed, achieved=removed + 0.012, metric="top1_percent", value=value)
    return row | dict(higher_is_better=True, seed=seed, control=control, seconds=2.0) | extra


GOOD = [record("original", 95.0, removed=0.0), record("svd_llm", 70.0), record("svd_llm", 74.0, 1)]
GOOD += [record("svd_llm", 73.0, control=True), record("svd_llm", 73.5, 1, control=True)]
GOOD += [record("prehab", 76.5), record("prehab", 77.5, 1), record("prehab", 80.0, lora=True)]
GOOD = [one | {"paper_table": "II"} for one in GOOD]


def only(records, notebook="03_vit") -> tables.Table:
    (table,) = tables.tables(notebook, ABOUT, records)
    return table


def row(lines: list[str], start: str) -> list[str]:
    """The cells of the row of this name."""
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return next(rest for name, *rest in cells if name == start)


def test_ours_stand_beside_the_papers():
    table = only(GOOD)
    lines = tables.markdown(table)
    assert table.title == "03_vit: top1_percent (higher is better), beside Table II of the paper"
    for name, cells in (
        ("parameters removed", ["0%", "40%"]),
        ("original", ["95 (1)", ""]),
        ("*the paper: original*", ["*81.1*", ""]),
        ("svd_llm", ["", "72 ± 2.8 (2)"]),
        ("svd_llm (control, λ = 0)", ["", "73.25 ± 0.35 (2)"]),
        ("prehab", ["", "77 ± 0.71 (2)"]),
        ("*the paper: prehab*", ["", "*71.92*"]),
        ("prehab, lora", ["", "80 (1)"]),
        ("*the paper: prehab, lora*", ["", "*74.41*"]),
    ):
        assert row(lines, name) == cells, name
    assert not any("the paper: svd_llm (control" in line for line in lines)  # the paper has no such row
    setting = "Ours: tiny ViT on digit pairs. The paper: ViT-B/16 on ImageNet-1K val."
    assert f"{setting} Compare sign and order, not size." in lines
    assert any("40% asked, 41.2%" in line for line in lines)
    cell = table.cells[(table.cells.row == "svd_llm") & (table.cells.removed == 0.4)].iloc[0]
    assert (cell["mean"], cell.n, cell["std"]) == (72.0, 2, pytest.approx(statistics.stdev([70, 74])))


def test_a_table_without_control_or_with_two_values_for_one_cell_is_refused():
    for records, sentence in (
        ([one for one in GOOD if not one["control"]], "Not printed: 03_vit: top1_percent .* has no control row"),
        ([*GOOD, GOOD[5] | {"removed": 0.8}], "no control row .λ = 0, all else equal. at 80% removed"),
        ([*GOOD, GOOD[5] | {"note": "other"}], "two values for prehab at 40% removed, seed 0"),
    ):
        table = only(records)
        assert re.search(sentence, table.refusal), sentence
        assert tables.markdown(table) == [table.refusal]
    table = only([*GOOD, GOOD[5] | {"arm": "other"}])
    assert table.refusal == "" and {"prehab, lora", "prehab", "prehab, other"} <= set(table.cells.row)


def test_arms_are_rows_and_a_bar_in_a_name_breaks_no_table():
    arms = [record("svd_llm", 1, control=True, arm="control"), record("svd_llm", 2, arm="a | b")]
    table = only([*arms, record("svd_llm", 3.0, arm="svd_llm")])
    assert list(table.cells.row) == ["svd_llm, control (control, λ = 0)", "svd_llm, a | b", "svd_llm"]
    assert any(line.startswith(r"| svd_llm, a \| b ") for line in tables.markdown(table))


def test_metrics_and_data_sets_make_tables_of_their_own():
    both = [record("svd", 1.0, control=True, dataset=name) for name in ("CoLA", "SST-2")]
    both += [both[0] | {"metric": "perplexity", "higher_is_better": False}]
    found = {table.title: table.name for table in tables.tables("04_bert", ABOUT, both)}
    titles = ["top1_percent, CoLA (higher", "top1_percent, SST-2 (higher", "perplexity, CoLA (lower"]
    assert list(found) == [f"04_bert: {title} is better)" for title in titles]
    assert len(set(found.values())) == 3


def test_the_papers_number_is_found_or_left_out():
    for extra, value in (
        (dict(paper_table="II"), 71.92),
        (dict(paper_table="II", removed=0.8), None),
        (dict(paper_table="II", control=True), None),
        (dict(), None),
        (dict(paper_table="II", method="mine", paper_method="prehab"), 71.92),
        (dict(paper_table="II", method="mine"), None),
        (dict(paper_table="III", paper_dataset="nothing"), None),
        (dict(paper_table="V", lam=5.0), 71.76),
    ):
        assert tables.paper_value(record(**dict(method="prehab", value=1.0) | extra)) == value, extra


VALUES = dict(zip(glue.COLUMNS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), strict=True))


def of_glue(values: dict, seed=0, **extra) -> list[dict]:
    """A score for each column of Table III."""
    metrics = {column: task.metric for task in glue.GLUE.values() for column in task.scored}
    fields = dict(paper_table="III", removed=0.2, **extra)
    places = {name: dict(metric=metrics[name], dataset=name, paper_dataset=f"GLUE dev / {name}") for name in values}
    return [record("svd", value, seed, **fields, **places[name]) for name, value in values.items()]


def averages(records) -> dict:
    found = {table.name: table for table in tables.tables("04_bert", ABOUT, records)}
    return {name: table for name, table in found.items() if "Average" in name}


def test_the_average_is_the_papers_mean_of_eight_taken_seed_by_seed():
    records = of_glue(VALUES, control=True)
    for seed in (0, 1):
        records += of_glue({name: value + 0.1 * seed for name, value in VALUES.items()}, seed)
    by_hand = (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7 + 0.9) / 8  # MNLI's two columns are one task
    found = averages(records)["04_bert_mean_III_Average"]
    cell = found.cells[found.cells.row == "svd"].iloc[0]
    assert (cell.n, cell["mean"], cell.paper) == (2, pytest.approx(by_hand + 0.05), 0.588)
    assert row(tables.markdown(found), "*the paper: svd*") == ["*0.588*"]
    whole = of_glue(VALUES, control=True)
    for missing in range(len(whole)):  # none over fewer tasks, or from different seeds
        rest = whole[:missing] + whole[missing + 1 :]
        assert not averages(rest) and not averages([*rest, whole[missing] | {"seed": 1}]), missing


def test_what_is_noted_of_a_score_stands_below_the_table():
    note = "the model says the same to every row; spearman is undefined and counted as 0"
    records = [one | {"note": ""} for one in GOOD]
    assert not any("Note" in line for line in tables.markdown(only(records)))
    records[1:3] = [one | {"note": note} for one in records[1:3]]
    assert f"Note: {note}: svd_llm at 40%." in tables.markdown(only(records))
