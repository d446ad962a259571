"""Tables: mean and spread over seeds beside the paper's numbers, refused without a control row."""

import itertools

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


def lines_of(records, notebook="03_vit") -> list[str]:
    return tables.markdown(notebook, ABOUT, records)


def rows(lines: list[str]) -> dict[str, list[str]]:
    """Name of a row -> its cells."""
    split = [line[1:-1].replace(r"\|", "¦").split("|") for line in lines if line.startswith("| ")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in split}


def test_ours_stand_beside_the_papers():
    lines = lines_of(GOOD)
    assert lines[0] == "### 03_vit: top1_percent (higher is better), beside Table II of the paper"
    assert rows(lines) == {
        "parameters removed": ["0%", "40%"],
        "original": ["95 (1)", ""],
        "*the paper: original*": ["*81.1*", ""],
        "svd_llm": ["", "72 ± 2.8 (2)"],
        "*the paper: svd_llm*": ["", "*67.83*"],
        "svd_llm (control, λ = 0)": ["", "73.25 ± 0.35 (2)"],  # the paper has no such row
        "prehab": ["", "77 ± 0.71 (2)"],
        "*the paper: prehab*": ["", "*71.92*"],
        "prehab, lora": ["", "80 (1)"],
        "*the paper: prehab, lora*": ["", "*74.41*"],
    }
    setting = "Ours: tiny ViT on digit pairs. The paper: ViT-B/16 on ImageNet-1K val."
    assert f"{setting} Compare sign and order, not size." in lines
    assert any("40% asked, 41.2%" in line for line in lines)


def test_fractions_that_differ_have_columns_that_differ():
    fractions = [0.3, 0.1 + 0.2, 0.333, 0.334, 0.995]
    cells = itertools.product(enumerate(fractions), (False, True))
    records = [record("svd_llm", 1.0, seed, removed=removed, control=control) for (seed, removed), control in cells]
    lines = lines_of(records)
    assert rows(lines)["parameters removed"] == ["30%", "33.3%", "33.4%", "99.5%"]
    assert rows(lines)["svd_llm"][0] == "1 ± 0 (2)" and any("33.4% asked" in line for line in lines)


def test_a_table_without_control_or_with_two_values_for_one_cell_is_refused():
    for records, sentence in (
        (
            [one for one in GOOD if not one["control"]],
            "Not printed: it has no control row (λ = 0, all else equal) at 40%",
        ),
        ([*GOOD, GOOD[5] | {"removed": 0.8}], "no control row (λ = 0, all else equal) at 80% removed"),
        ([*GOOD, GOOD[5] | {"note": "other"}], "two values for prehab at 40% removed, seed 0"),
    ):
        lines = lines_of(records)
        assert sentence in lines[2] and not rows(lines), sentence
    assert {"prehab, lora", "prehab", "prehab, other"} <= rows(lines_of([*GOOD, GOOD[5] | {"arm": "other"}])).keys()


def test_metrics_and_data_sets_make_tables_and_arms_make_rows():
    arms = [record("svd_llm", 1, control=True, arm="control"), record("svd_llm", 2, arm="a | b")]
    lines = lines_of([*arms, record("svd_llm", 3.0, arm="svd_llm")])
    assert list(rows(lines))[1:] == ["svd_llm, control (control, λ = 0)", "svd_llm, a ¦ b", "svd_llm"]
    both = [record("svd", 1.0, control=True, dataset=name) for name in ("CoLA", "SST-2")]
    both += [both[0] | {"metric": "perplexity", "higher_is_better": False}]
    titles = ["top1_percent, CoLA (higher", "top1_percent, SST-2 (higher", "perplexity, CoLA (lower"]
    found = [line for line in lines_of(both, "04_bert") if line.startswith("###")]
    assert found == [f"### 04_bert: {title} is better)" for title in titles]


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


def of_glue(seed=0, more=0.0, **extra) -> list[dict]:
    """A score for each column of Table III."""
    fields = dict(paper_table="III", removed=0.2, **extra)
    places = {name: dict(dataset=name, paper_dataset=f"GLUE dev / {name}") for name in VALUES}
    return [record("svd", value + more, seed, **fields, **places[name]) for name, value in VALUES.items()]


def average(records) -> dict:
    """The rows of the table of averages; none where there is none."""
    lines = lines_of(records)
    starts = [number for number, line in enumerate(lines) if ": mean, Average" in line]
    return rows(lines[starts[0] :]) if starts else {}


def test_the_average_is_the_papers_mean_of_eight_taken_seed_by_seed():
    found = average([*of_glue(control=True), *of_glue(), *of_glue(1, 0.1)])
    by_hand = (0.1 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6 + 0.7 + 0.9) / 8  # MNLI's two columns are one task
    mean, *_, seeds = found["svd"][0].split()
    assert (float(mean), seeds) == (pytest.approx(by_hand + 0.05, abs=1e-4), "(2)")
    assert found["*the paper: svd*"] == ["*0.588*"]
    whole = of_glue(control=True)
    for missing in range(len(whole)):  # none over fewer tasks, or from different seeds
        rest = whole[:missing] + whole[missing + 1 :]
        assert not average(rest) and not average([*rest, whole[missing] | {"seed": 1}]), missing


def test_what_is_noted_of_a_score_stands_below_the_table():
    note = "the model says the same to every row; spearman is undefined and counted as 0"
    records = [one | {"note": ""} for one in GOOD]
    assert not any("Note" in line for line in lines_of(records))
    records[1:3] = [one | {"note": note} for one in records[1:3]]
    assert f"Note: {note}: svd_llm at 40%." in lines_of(records)


def test_a_committed_table_is_read_from_the_repository_or_says_how_to_make_it(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "03_vit.ipynb").write_text("{}")
    (tmp_path / "figures" / "lab").mkdir(parents=True)
    (tmp_path / "figures" / "lab" / "table2.csv").write_text("removed,score\n0.2,80.5\n")
    monkeypatch.chdir(tmp_path / "notebooks")
    found = tables.committed("table2", profile="lab", score="top-1 (%)")
    assert found.to_dict("list") == {"removed": [0.2], "top-1 (%)": [80.5]}
    with pytest.raises(FileNotFoundError, match="no figures/laptop/table2.csv: run the profile, then"):
        tables.committed("table2")
    with pytest.raises(ValueError, match="column of table2.csv = 'points' is not known: choose one of removed, score"):
        tables.committed("table2", profile="lab", points="x")
