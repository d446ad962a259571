"""Tables: mean and spread over seeds beside the paper's numbers, refused without a control row."""

import statistics

import pytest

from prehab_lib.report import tables
from prehab_lib.tasks import glue

ABOUT = {"model": "tiny ViT", "data": "digit pairs"}


def record(method, value, seed=0, removed=0.4, control=False, **extra):
    row = dict(method=method, removed=removed, achieved=removed + 0.012, metric="top1_percent", value=value)
    return row | dict(higher_is_better=True, seed=seed, control=control, seconds=2.0) | extra


GOOD = [
    record("original", 95.0, removed=0.0, paper_table="II"),
    record("svd_llm", 70.0, paper_table="II"),
    record("svd_llm", 74.0, seed=1, paper_table="II"),
    record("svd_llm", 73.0, control=True, paper_table="II"),
    record("svd_llm", 73.5, seed=1, control=True, paper_table="II"),
    record("prehab", 76.5, paper_table="II"),
    record("prehab", 77.5, seed=1, paper_table="II"),
    record("prehab", 80.0, paper_table="II", lora=True),
]


def row(lines: list[str], start: str) -> list[str]:
    """The cells of the row of this name."""
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return next(rest for name, *rest in cells if name == start)


def test_ours_stand_beside_the_papers():
    (table,) = tables.tables("03_vit", ABOUT, GOOD)
    lines = tables.markdown(table)
    assert table.title == "03_vit: top1_percent (higher is better), beside Table II of the paper"
    assert row(lines, "parameters removed") == ["0%", "40%"]
    assert row(lines, "original") == ["95 (1)", ""]
    assert row(lines, "*the paper: original*") == ["*81.1*", ""]
    assert row(lines, "svd_llm") == ["", "72 ± 2.8 (2)"]
    assert row(lines, "svd_llm (control, λ = 0)") == ["", "73.25 ± 0.35 (2)"]
    assert row(lines, "prehab") == ["", "77 ± 0.71 (2)"]
    assert row(lines, "*the paper: prehab*") == ["", "*71.92*"]
    assert row(lines, "prehab, lora") == ["", "80 (1)"]
    assert row(lines, "*the paper: prehab, lora*") == ["", "*74.41*"]
    assert not any("the paper: svd_llm (control" in line for line in lines)  # the paper has no such row
    setting = "Ours: tiny ViT on digit pairs. The paper: ViT-B/16 on ImageNet-1K val."
    assert f"{setting} Compare sign and order, not size." in lines
    assert any("40% asked, 41.2%" in line for line in lines)
    cell = table.cells[(table.cells.row == "svd_llm") & (table.cells.removed == 0.4)].iloc[0]
    assert (cell["mean"], cell.n, cell["std"]) == (72.0, 2, pytest.approx(statistics.stdev([70, 74])))


def test_a_table_or_a_column_without_control_is_refused():
    (table,) = tables.tables("03_vit", ABOUT, [kept for kept in GOOD if not kept["control"]])
    assert table.refusal.startswith("Not printed: 03_vit: top1_percent") and "no control row" in table.refusal
    (table,) = tables.tables("03_vit", ABOUT, [*GOOD, record("prehab", 50.0, removed=0.8, paper_table="II")])
    assert "no control row (λ = 0, all else equal) at 80% removed" in table.refusal
    assert tables.markdown(table) == [table.refusal]


def test_two_values_for_one_cell_are_not_averaged():
    (table,) = tables.tables("03_vit", ABOUT, [*GOOD, record("prehab", 10.0, paper_table="II", note="other")])
    assert "two values for prehab at 40% removed, seed 0" in table.refusal
    (table,) = tables.tables("03_vit", ABOUT, [*GOOD, record("prehab", 10.0, paper_table="II", arm="other")])
    assert table.refusal == "" and {"prehab, lora", "prehab", "prehab, other"} <= set(table.cells.row)


def test_arms_are_rows_and_a_bar_in_a_name_breaks_no_table():
    arms = [
        record("svd_llm", value, control=arm == "control", arm=arm) for arm, value in (("control", 1), ("a | b", 2))
    ]
    (table,) = tables.tables("06_ablations", {}, [*arms, record("svd_llm", 3.0, arm="svd_llm")])
    assert list(table.cells.row) == ["svd_llm, control (control, λ = 0)", "svd_llm, a | b", "svd_llm"]
    assert any(line.startswith(r"| svd_llm, a \| b ") for line in tables.markdown(table))


def test_metrics_and_data_sets_make_tables_of_their_own():
    both = [record("svd", 1.0, control=True, dataset=name) for name in ("CoLA", "SST-2")]
    both += [both[0] | {"metric": "perplexity", "higher_is_better": False}]
    found = tables.tables("04_bert", ABOUT, both)
    assert [table.title for table in found] == [
        "04_bert: top1_percent, CoLA (higher is better)",
        "04_bert: top1_percent, SST-2 (higher is better)",
        "04_bert: perplexity, CoLA (lower is better)",
    ]
    assert len({table.name for table in found}) == 3


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


def of_glue(values: dict, method="svd", seed=0, **extra) -> list[dict]:
    """A score for each column of Table III."""
    metrics = {column: task.metric for task in glue.GLUE.values() for column in task.scored}
    fields = dict(paper_table="III", removed=0.2) | extra
    return [
        record(method, value, seed, metric=metrics[name], dataset=name, paper_dataset=f"GLUE dev / {name}", **fields)
        for name, value in values.items()
    ]


VALUES = dict(zip(glue.COLUMNS, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), strict=True))


def averages(records) -> dict:
    found = [table for table in tables.tables("04_bert", ABOUT, records) if "Average" in table.name]
    return {table.name: table for table in found}


def test_the_average_is_the_papers_mean_of_eight_taken_seed_by_seed():
    records = of_glue(VALUES, control=True)
    for seed in (0, 1):
        records += of_glue({name: value + 0.1 * seed for name, value in VALUES.items()}, seed=seed)
    by_hand = (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7 + 0.9) / 8  # MNLI's two columns are one task
    found = averages(records)["04_bert_mean_III_Average"]
    cell = found.cells[found.cells.row == "svd"].iloc[0]
    assert (cell.n, cell["mean"], cell.paper) == (2, pytest.approx(by_hand + 0.05), 0.588)
    assert row(tables.markdown(found), "*the paper: svd*") == ["*0.588*"]


def test_no_average_over_fewer_tasks_or_from_different_seeds():
    for missing in VALUES:
        assert not averages(of_glue({name: value for name, value in VALUES.items() if name != missing}, control=True))
    first = {name: VALUES[name] for name in list(VALUES)[:5]}
    later = {name: VALUES[name] for name in list(VALUES)[5:]}
    assert not averages(of_glue(first, control=True) + of_glue(later, seed=1, control=True))


def test_what_is_noted_of_a_score_stands_below_the_table():
    note = "the model says the same to every row; spearman is undefined and counted as 0"
    records = [kept | {"note": ""} for kept in GOOD]
    assert not any("Note" in line for line in tables.markdown(*tables.tables("04_bert", ABOUT, records)))
    for kept in records[1:3]:
        kept["note"] = note
    assert f"Note: {note}: svd_llm at 40%." in tables.markdown(*tables.tables("04_bert", ABOUT, records))
