"""Reports: mean and spread over seeds beside the paper's numbers, refused without a control row."""

import json

import pandas
import pytest

from prehab_lib import __main__
from prehab_lib.report import report, tables

ABOUT = {
    "profile": "laptop",
    "device": "cpu",
    "device_name": "a processor",
    "threads": 2,
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "commit": "0123abc+dirty",
    "model": "tiny ViT",
    "data": "digit pairs",
}


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


@pytest.fixture
def laptop(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_vit.ipynb").write_text('{"cells": []}')
    monkeypatch.chdir(tmp_path)

    def write(records, name="03_vit", claims=()):
        folder = tmp_path / "runs" / "laptop" / name
        folder.mkdir(parents=True, exist_ok=True)
        run = {"profile": "laptop", "seconds": 61.2, "peak_memory_mb": 900, "started": "2026-01-01T00:00:00+00:00"}
        (folder / "run.json").write_text(json.dumps(run))
        if records is not None:
            result = {"about": ABOUT, "protocol": "top-1 on held-out pairs", "records": records}
            (folder / "result.json").write_text(json.dumps(result))
        (folder / "claims.jsonl").write_text("".join(json.dumps(claim) + "\n" for claim in claims))
        return tmp_path / "runs" / "laptop"

    return write


def row(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_ours_stand_beside_the_papers(laptop, capsys):
    claim = {
        "sentence": "prehab beats SVD-LLM",
        "holds": 2,
        "cases": 3,
        "of": "ratios",
        "paper": "+2 %",
        "ours": "tiny",
    }
    folder = laptop(GOOD, claims=[claim, claim | {"holds": 0}])
    assert __main__.main(["report", "laptop"]) == 0
    assert capsys.readouterr().out == "written: runs/laptop/report.md\n"
    text = (folder / "report.md").read_text()
    assert row(text, "parameters removed") == ["0%", "40%"]
    assert row(text, "original") == ["95 (1)", ""]
    assert row(text, "*the paper: original*") == ["*81.1*", ""]
    assert row(text, "svd_llm") == ["", "72 ± 2.8 (2)"]
    assert row(text, "svd_llm (control, λ = 0)") == ["", "73.25 ± 0.35 (2)"]
    assert row(text, "prehab") == ["", "77 ± 0.71 (2)"]
    assert row(text, "*the paper: prehab*") == ["", "*71.92*"]
    assert row(text, "prehab (lora)") == ["", "80 (1)"]
    assert "*the paper: svd_llm (control" not in text  # the paper has no such row
    assert "Ours: tiny ViT on digit pairs. The paper: ViT-B/16 on ImageNet-1K val" in text
    assert "40% asked, 41.2%" in text
    assert "seeds 0, 1 | cpu (a processor), 2 threads | python 3.11.7, torch 2.15.0 | commit 0123abc+dirty" in text
    assert "61.2 s, 900 MB" in text
    assert "- prehab beats SVD-LLM: **holds at 2 of 3 ratios** (paper +2 %; ours: tiny)" in text
    assert "**does not hold: 0 of 3 ratios**" in text
    assert "Protocol: top-1 on held-out pairs" in text
    cells = pandas.read_csv(folder / "tables" / "03_vit_top1_percent_II.csv")
    chosen = cells[(cells.row == "svd_llm") & (cells.removed == 0.4)].iloc[0]
    assert (chosen["mean"], chosen.n, round(chosen["std"], 3)) == (72.0, 2, 2.828)


def test_a_table_without_control_is_refused(laptop):
    folder = laptop(GOOD)
    report.write("laptop")
    assert list((folder / "tables").iterdir())
    laptop([kept for kept in GOOD if not kept["control"]])
    report.write("laptop")
    text = (folder / "report.md").read_text()
    assert "Not printed: 03_vit: top1_percent" in text and "no control row" in text
    assert "77 ±" not in text
    assert list((folder / "tables").iterdir()) == []


def test_a_column_without_control_is_named():
    records = [*GOOD, record("prehab", 50.0, removed=0.8, paper_table="II")]
    (table,) = tables.tables("03_vit", ABOUT, records)
    assert "no control row (λ = 0, all else equal) at 80% removed" in table.refusal
    assert tables.markdown(table) == [table.refusal]


def test_two_values_for_one_cell_are_not_averaged():
    records = [*GOOD, record("prehab", 10.0, paper_table="II", note="other")]
    (table,) = tables.tables("03_vit", ABOUT, records)
    assert "two values for prehab at 40% removed, seed 0" in table.refusal
    apart = [kept | {"variant": "a"} for kept in GOOD] + [record("prehab", 10.0, paper_table="II", variant="b")]
    (table,) = tables.tables("03_vit", ABOUT, apart)
    assert table.refusal == ""
    assert {"prehab (lora, variant a)", "prehab (variant a)", "prehab (variant b)"} <= set(table.cells.row)


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


@pytest.mark.parametrize(
    "extra, value",
    [
        (dict(paper_table="II"), 71.92),
        (dict(paper_table="II", removed=0.8), None),
        (dict(paper_table="II", control=True), None),
        (dict(), None),
        (dict(paper_table="II", method="mine", paper_method="prehab"), 71.92),
        (dict(paper_table="II", method="mine"), None),
        (dict(paper_table="III", paper_dataset="nothing"), None),
    ],
)
def test_the_papers_number_is_found_or_left_out(extra, value):
    assert tables.paper_value(record(**dict(method="prehab", value=1.0) | extra)) == value


def test_notebooks_without_scores_are_listed(laptop):
    folder = laptop(None, name="00_start_here")
    report.write("laptop")
    text = (folder / "report.md").read_text()
    assert "## 00_start_here" in text and "Made by: profile laptop | 61.2 s, 900 MB" in text


def test_nothing_to_report_is_one_sentence(laptop, tmp_path, capsys):
    for word in ("report", "figures"):
        assert __main__.main([word, "laptop"]) == 2
        said = capsys.readouterr().err
        assert "python -m prehab_lib run laptop" in said and said.count("\n") == 1


def test_figures_are_copied(laptop, tmp_path, capsys):
    figures = laptop(GOOD) / "figures"
    figures.mkdir()
    (figures / "fig2.png").write_bytes(b"png")
    (figures / "fig2.csv").write_text("a\n")
    (figures / ".fig2.csv.123").write_text("torn")
    assert __main__.main(["figures", "laptop"]) == 0
    assert sorted(file.name for file in (tmp_path / "figures" / "laptop").iterdir()) == ["fig2.csv", "fig2.png"]


def test_the_data_command_names_what_is_missing(laptop, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PREHAB_DATA", raising=False)
    assert __main__.main(["data", "lab"]) == 0
    assert '03_vit: cifar10 is downloaded from the hub as "uoft-cs/cifar10"' in capsys.readouterr().out
    monkeypatch.setenv("PREHAB_DATA", str(tmp_path))
    assert __main__.main(["data", "lab"]) == 0
    said = capsys.readouterr().out
    assert "03_vit: cifar10 is missing" in said and "the folder that holds cifar10" in said
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test.parquet").write_bytes(b"")
    assert __main__.main(["data", "lab", "--data-root", str(tmp_path)]) == 0
    assert f"cifar10 is in {tmp_path / 'cifar10'}" in capsys.readouterr().out
    assert __main__.main(["data", "laptop"]) == 0
    assert "03_vit: nothing, its data is embedded" in capsys.readouterr().out
    assert __main__.main(["data", "labb"]) == 2
