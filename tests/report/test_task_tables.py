"""Scores of several runs in one table: tasks across, a block for each removed fraction, the paper's rows below ours."""

import json
import math
import statistics
import subprocess
import sys

import pandas
import pytest

from prehab_lib.report import layouts, report, tables
from prehab_lib.tasks import glue

ABOUT = {"model": "tiny BERT", "data": "GLUE"}
METRIC = {column: task.metric for task in glue.GLUE.values() for column in task.scored}
PARAMETERS = 'task: str = "cola"  # task\nlam: float = 0.1  # rank weight\n'


def record(dataset, method, value, seed=0, removed=0.2, control=False, **extra):
    row = dict(method=method, removed=removed, achieved=removed and removed + 0.01, metric=METRIC.get(dataset, "f1"))
    row |= dict(value=value, higher_is_better=True, seed=seed, control=control, seconds=2.0, arm=method, lora=False)
    row |= dict(surrogate=None, lam=None, dataset=dataset)
    if dataset in METRIC:
        row |= dict(paper_table="III", paper_dataset=f"GLUE dev / {dataset}", paper_method=method)
    return row | extra


def task(*columns, base=0.5, seeds=(0,), ratios=(0.2, 0.4)):
    """What a run of one task records: the model, SVD, the control and prehab; scores tell column, method and seed apart."""
    found = []
    for place, column in enumerate(columns):
        for seed in seeds:
            value = base + 0.01 * place + 0.001 * seed
            found.append(record(column, "original", value + 0.2, seed, removed=0.0))
            for removed in ratios:
                found.append(record(column, "svd", value, seed, removed))
                found.append(record(column, "control", value + 0.04, seed, removed, control=True, lam=0.0))
                found.append(record(column, "prehab", value + 0.05, seed, removed, lam=0.1))
    return found


def cells_of(lines: list[str], start: str) -> list[list[str]]:
    """The cells of every row of that name, one for each block."""
    found = [line for line in lines if line.startswith(f"| {start} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in found]


def one_table(records) -> tables.Table:
    (table,) = tables.tables("04_bert", ABOUT, records)
    return table


def test_tasks_are_columns_in_the_papers_order_and_ratios_are_blocks():
    table = one_table(task("MRPC") + task("CoLA", base=0.3))
    lines = tables.markdown(table)
    assert table.title == "04_bert: scores by task (higher is better), beside Table III of the paper"
    assert table.name == "04_bert_III"
    assert cells_of(lines, "task (metric)") == [["CoLA (matthews)", "MRPC (f1)"]]
    assert [line.split("|")[1].strip() for line in lines if "**" in line] == [f"**{n}% removed**" for n in (0, 20, 40)]
    assert cells_of(lines, "original") == [["0.500 (1)", "0.700 (1)"]]
    assert cells_of(lines, "*the paper: original*") == [["*0.567*", "*0.898*"]]
    assert cells_of(lines, "svd") == [["0.300 (1)", "0.500 (1)"]] * 2
    assert cells_of(lines, "*the paper: svd*") == [["*0.021*", "*0.684*"], ["*0*", "*0.075*"]]
    assert cells_of(lines, "control (λ = 0)") == [["0.340 (1)", "0.540 (1)"]] * 2
    assert cells_of(lines, "*the paper: prehab*") == [["*0.492*", "*0.901*"], ["*0.421*", "*0.887*"]]
    assert not any("paper: control" in line or "Average" in line for line in lines)
    assert lines.index(next(line for line in lines if line.startswith("| control"))) > lines.index(
        next(line for line in lines if "20% removed" in line)
    )
    assert "Ours: tiny BERT on GLUE. The paper: BERT-Base on GLUE dev. Compare sign and order, not size." in lines
    assert any("20% asked, 21.0%; 40% asked, 41.0%" in line for line in lines)


def test_the_average_is_the_papers_mean_of_eight_taken_seed_by_seed():
    values = dict(zip(METRIC, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0), strict=True))
    records = [
        record(column, method, value + bonus + 0.1 * seed, seed, control=method == "control")
        for column, value in values.items()
        for method, bonus in (("svd", 0.0), ("control", 0.01))
        for seed in (0, 1)
    ]
    by_hand = (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7 + 0.9) / 8  # MNLI's two columns are one task
    table = one_table(records)
    lines = tables.markdown(table)
    assert cells_of(lines, "task (metric)")[0][-1] == "Average (mean)"
    assert cells_of(lines, "svd")[0][-1] == f"{by_hand + 0.05:.3f} ± {0.1 / math.sqrt(2):.3f} (2)"
    assert cells_of(lines, "*the paper: svd*")[0][-1] == "*0.588*"
    assert cells_of(lines, "control (λ = 0)")[0][-1] == f"{by_hand + 0.06:.3f} ± {0.1 / math.sqrt(2):.3f} (2)"
    assert any("MNLI's two columns merged first" in line for line in lines)
    average = table.cells[(table.cells.row == "svd") & (table.cells.dataset == "Average")].iloc[0]
    assert (average.metric, average.n, round(average["mean"], 6)) == ("mean", 2, round(by_hand + 0.05, 6))


def test_no_average_over_fewer_tasks_or_from_different_seeds():
    everything = task(*METRIC)
    assert "Average" in set(one_table(everything).cells.dataset)
    for column in METRIC:
        fewer = one_table([kept for kept in everything if kept["dataset"] != column])
        assert fewer.refusal == "" and "Average" not in set(fewer.cells.dataset)
    seeds = task(*list(METRIC)[:5], seeds=(0, 1)) + task(*list(METRIC)[5:], seeds=(1, 2))
    cells = one_table(seeds).cells
    assert set(cells[cells.dataset == "Average"].n) == {1}
    no_prehab = [kept for kept in everything if (kept["method"], kept["dataset"]) != ("prehab", "RTE")]
    table = one_table(no_prehab)
    assert set(table.cells[table.cells.dataset == "Average"].row) == {"original", "svd", "control (λ = 0)"}
    assert cells_of(tables.markdown(table), "prehab")[0][-1] == ""


def test_an_arm_without_a_row_in_the_paper_has_none_in_the_average():
    records = task(*METRIC) + [
        record(column, "prehab", 0.1, arm="other", lam=0.1, paper_method="none") for column in METRIC
    ]
    lines = tables.markdown(one_table(records))
    assert cells_of(lines, "prehab, other") == [["0.100 (1)"] * 10]
    assert not any("the paper: prehab, other" in line for line in lines)
    assert cells_of(lines, "*the paper: prehab*")[0][-1] == "*0.79*"


@pytest.mark.parametrize("where", [dict(removed=0.4), dict(dataset="MRPC"), dict(dataset="MRPC", removed=0.2)])
def test_every_task_of_every_block_needs_its_control(where):
    kept = [
        line
        for line in task("CoLA") + task("MRPC")
        if not (line["control"] and all(line[field] == value for field, value in where.items()))
    ]
    table = one_table(kept)
    asked = f"{where.get('removed', 0.2):.0%} ({where.get('dataset', 'CoLA')}, "
    assert "no control row (λ = 0, all else equal) at " in table.refusal and asked in table.refusal
    assert tables.markdown(table) == [table.refusal]


def test_two_scores_of_one_cell_are_not_averaged():
    records = task("CoLA", "MRPC")
    table = one_table([*records, records[1] | {"value": 0.9}])
    assert "two values for svd at 20% (CoLA, matthews) removed, seed 0" in table.refusal


def test_a_setting_that_differs_only_between_tasks_makes_no_rows_of_its_own():
    records = [line | {"steps": 10} for line in task("CoLA")] + [line | {"steps": 99} for line in task("MRPC")]
    records += [record("CoLA", "prehab", 0.6, lam=1.0, removed=removed, steps=10) for removed in (0.2, 0.4)]
    rows = {"original", "svd", "control (λ = 0)", "prehab (lam 0.1)", "prehab (lam 1)"}
    assert set(one_table(records).cells.row) == rows


def test_embedded_tasks_are_a_table_of_their_own_without_the_papers_rows():
    prose = [
        record(name, "prehab", 0.5, control=control, lam=0.0 if control else 0.1, paper_table=paper)
        for name, paper in (("similarity", None), ("acceptability", None), ("paraphrase", "III"))
        for control in (True, False)
    ]
    found = tables.tables("04_bert", ABOUT, [*prose, *task("CoLA")])
    assert [table.name for table in found] == ["04_bert_prose", "04_bert_III"]
    lines = tables.markdown(found[0])
    assert found[0].title == "04_bert: scores by embedded task (higher is better)"
    assert cells_of(lines, "task (metric)") == [["acceptability (f1)", "paraphrase (f1)", "similarity (f1)"]]
    assert cells_of(lines, "prehab (control, λ = 0)") == [["0.500 (1)"] * 3]
    assert not any("paper" in line for line in lines)


def test_other_scores_of_the_same_run_keep_their_own_tables():
    records = [*task("MRPC"), record("MRPC", "svd", 0.5, metric="accuracy", control=True, paper_table=None)]
    assert [table.name for table in tables.tables("04_bert", ABOUT, records)] == [
        "04_bert_III",
        "04_bert_accuracy_MRPC",
    ]


def test_the_embedded_tasks_are_those_of_their_module():
    from prehab_lib.tasks.prose_tasks import PROSE

    assert list(next(layout for layout in layouts.LAYOUTS if layout.name == "prose").tasks) == list(PROSE)


@pytest.fixture
def lab(tmp_path, write_notebook, monkeypatch):
    """fn(run -> (records, extra facts)): finished runs of a grid over three tasks."""
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "04_bert.ipynb", "1", parameters=PARAMETERS)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "04_bert.lab.yaml").write_text("# why\ngrid: {task: [cola, sst2, mrpc]}\n")
    folder = tmp_path / "runs" / "lab"

    def write(name, records, claims=(), params=None, protocol="on 100 rows"):
        (folder / f"04_bert.{name}").mkdir(parents=True)
        run = {
            "notebook": "04_bert",
            "profile": "lab",
            "seconds": 61.2,
            "params": {"task": name, "lam": 0.1} | (params or {}),
        }
        (folder / f"04_bert.{name}" / "run.json").write_text(json.dumps(run))
        about = {"model": "tiny BERT", "data": name, "commit": "0123abc"}
        result = {"about": about, "protocol": protocol, "records": records}
        (folder / f"04_bert.{name}" / "result.json").write_text(json.dumps(result))
        (folder / f"04_bert.{name}" / "claims.jsonl").write_text("".join(json.dumps(claim) + "\n" for claim in claims))
        return folder

    return write


CLAIM = {
    "sentence": "prehab beats its control",
    "holds": 1,
    "cases": 2,
    "of": "ratios",
    "paper": "no control",
    "ours": "tiny",
}


def test_three_runs_are_one_section_with_one_table(lab):
    lab("cola", task("CoLA"), [CLAIM])
    lab(
        "mrpc",
        task("MRPC"),
        [CLAIM | {"holds": 2}, CLAIM | {"sentence": "F1 is high", "ours": "MRPC"}],
        protocol="on all rows",
    )
    (folder := lab("sst2", task("SST-2"), [CLAIM | {"holds": 0}])).joinpath("tables").mkdir()
    (folder / "tables" / "earlier.csv").write_text("a\n")
    report.write("lab")
    text = (folder / "report.md").read_text()
    assert text.count("\n## 04_bert\n") == text.count("\n### ") == 1
    assert cells_of(text.splitlines(), "svd")[0] == ["0.500 (1)"] * 3
    assert "Ours: tiny BERT on cola, sst2, mrpc. The paper" in text
    counted = (
        "**holds at 3 of 6 ratios** over 3 runs: cola 1 of 2; sst2 0 of 2; mrpc 2 of 2 (paper no control; ours: tiny)"
    )
    assert f"- prehab beats its control: {counted}" in text
    assert "- F1 is high: **holds at 1 of 2 ratios** in mrpc (paper no control; ours: MRPC)" in text
    assert "- Protocol (cola, sst2): on 100 rows\n- Protocol (mrpc): on all rows\n" in text
    assert "Made by: profile lab | seeds 0 | commit 0123abc\n" in text and "- sst2: 61.2 s, " in text
    assert "Left out" not in text and "Not there yet" not in text and "was run with" not in text
    assert [file.name for file in (folder / "tables").iterdir()] == ["04_bert_III.csv"]
    cells = pandas.read_csv(folder / "tables" / "04_bert_III.csv")
    assert set(cells.dataset) == {"CoLA", "SST-2", "MRPC"} and len(cells) == 3 * 7
    chosen = cells[(cells.row == "svd") & (cells.dataset == "MRPC") & (cells.removed == 0.4)].iloc[0]
    assert (chosen["mean"], chosen.metric, chosen.paper) == (0.5, "f1", 0.075)


def test_runs_that_are_missing_left_over_or_of_other_parameters_are_told(lab, tmp_path):
    lab("cola", task("CoLA"), params={"lam": 0.5})
    folder = lab("rte", task("RTE", base=0.9))
    report.write("lab")
    text = (folder / "report.md").read_text()
    assert "Not there yet: 04_bert.sst2, 04_bert.mrpc." in text
    assert "Left out, for params/04_bert.lab.yaml as it stands makes no such run: 04_bert.rte." in text
    assert "04_bert.cola was run with lam = 0.5, which is not what params/04_bert.lab.yaml says now." in text
    assert "RTE" not in text and "0.900" not in text
    (tmp_path / "params" / "04_bert.lab.yaml").write_text("# why\n")
    report.write("lab")
    text = (folder / "report.md").read_text()
    assert "makes no such run: 04_bert.cola, 04_bert.rte." in text and "| svd" not in text
    assert list((folder / "tables").iterdir()) == []


def test_what_several_runs_share_is_one_measurement(lab):
    """Runs over λ score the same control: equal rows count once, different ones are refused."""
    shared = [line for line in task("CoLA") if line["method"] != "prehab"]
    lab("cola", [*shared, record("CoLA", "prehab", 0.6, lam=0.1)])
    folder = lab("sst2", [*(line | {"seconds": 9.0} for line in shared), record("CoLA", "prehab", 0.7, lam=1.0)])
    report.write("lab")
    lines = (folder / "report.md").read_text().splitlines()
    assert cells_of(lines, "svd")[0] == ["0.500 (1)"]
    assert cells_of(lines, "prehab (lam 0.1)")[0] == ["0.600 (1)"] and cells_of(lines, "prehab (lam 1)")[0] == [
        "0.700 (1)"
    ]
    lab("mrpc", [shared[1] | {"value": 0.51}])
    report.write("lab")
    assert "two values for svd at 20% (CoLA, matthews) removed" in (folder / "report.md").read_text()


def test_reports_import_no_torch(lab):
    lab("cola", task("CoLA"))
    code = "import sys; from prehab_lib import report; report.write('lab'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_noted_of_a_score_stands_below_the_table():
    undefined = "the model says the same to every row; spearman is undefined and counted as 0"
    records = [line | {"note": ""} for line in task("STS-B", seeds=(0, 1))] + task("CoLA")
    assert not any("Note" in line for line in tables.markdown(one_table(records)))
    for line in records:
        if (line["dataset"], line["method"], line["removed"]) == ("STS-B", "svd", 0.4):
            line["note"] = undefined
    assert f"Note: {undefined}: svd at 40% (STS-B, spearman)." in tables.markdown(one_table(records))


def test_spread_is_over_seeds():
    table = one_table(task("CoLA", seeds=(0, 1, 2)))
    chosen = table.cells[table.cells.row == "svd"].iloc[0]
    assert chosen["std"] == pytest.approx(statistics.stdev([0.5, 0.501, 0.502])) and chosen.n == 3
    assert cells_of(tables.markdown(table), "svd")[0] == ["0.501 ± 0.001 (3)"]
