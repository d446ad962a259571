"""The page of verdicts, and the README's table that is made from the committed ones."""

import json
import re
from pathlib import Path

import pandas
import pytest

from prehab_lib import __main__
from prehab_lib.report import audit, report, verdicts
from tests.profiles import ABOUT, enter, line, vit_records, write_run

ROOT = Path(__file__).resolve().parents[2]
BEGIN = verdicts.BEGIN.format(file="figures/laptop/verdicts.csv")


@pytest.fixture
def home(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_run(tmp_path, "05_llama", vit_records())
    about = ABOUT | {"versions": ABOUT["versions"] | {"torch": "2.6.0"}}
    write_run(
        tmp_path, "07_adaptive_rank", vit_records(), [line("Both: IO-SVD beats Zero Sum SVD", [True, False])], about
    )
    return tmp_path


def judged(home):
    runs = audit.results(home / "runs" / "laptop")
    return audit.judge(runs), runs


def cells(lines: list[str], start: str) -> list[str]:
    found = next(one for one in lines if one.startswith(f"| {start}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", found)[1:-1]]


def test_report_and_notebook_print_the_same_page(home):
    found, runs = judged(home)
    page = verdicts.page(found, runs)
    report.write("laptop")
    text = (home / "runs" / "laptop" / "report.md").read_text()
    assert "\n".join(page) in text
    assert page[0].startswith(f"{len(audit.claims())} claims: holds in every case ")
    assert cells(page, "Table II | prehab (nuclear")[2:] == [
        "at 4 of 4 ratios",
        "small ViT, digit pairs, 2 seeds",
        "**holds at 3 of 4 ratios × seeds**",
        "",
    ]
    assert "; without 04_bert_glue, 05_llama" in cells(page, "abstract | prehab reduces the drop")[4]
    assert all(len(cells([one], one[2:9])) == 6 for one in page if one.startswith("| "))
    source = (ROOT / "notebooks" / "10_audit.ipynb").read_text(encoding="utf-8")
    assert "verdicts.page(judged, finished)" in source


def test_a_claim_of_other_versions_says_so_on_the_page(home):
    page = verdicts.page(*judged(home))
    assert cells(page, "IO-SVD | it beats")[4:] == [
        "**holds at 1 of 2 ratios × seeds**",
        "07_adaptive_rank: torch 2.6.0",
    ]
    assert "torch 2.15.0" in page[2]


def test_a_report_that_cannot_be_judged_says_why_and_prints_the_rest(home):
    write_run(home, "05_llama", vit_records(), profile="smoke")
    assert __main__.main(["report", "laptop"]) == 0
    text = (home / "runs" / "laptop" / "report.md").read_text()
    assert "Not judged: runs/laptop mixes profiles" in text and "## 03_vit" in text
    assert "**What the paper claims**" not in text


def test_no_bar_in_a_sentence_breaks_a_table():
    lines = verdicts._table(("a", "b"), [("paper", [("the smallest |ΔL|", "x")])])
    assert lines[-1] == r"| the smallest \|ΔL\| | x |"


README = f"# Title\n\n{BEGIN}\nwhat stood there\n{verdicts.END}\n\nThe rest.\n"


def test_the_readme_is_rewritten_between_its_markers_alone(home, capsys):
    (home / "README.md").write_text(README)
    folder = home / "figures" / "laptop"
    folder.mkdir(parents=True)
    table = verdicts.frame(judged(home)[0])
    table.to_csv(folder / "verdicts.csv", index=False)
    assert __main__.main(["verdicts"]) == 0 and __main__.main(["verdicts", "laptop"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "README.md now says what figures/laptop/verdicts.csv does",
        "README.md says already what figures/laptop/verdicts.csv does",
    ]
    text = (home / "README.md").read_text()
    assert text.startswith("# Title\n\n<!--") and text.endswith("-->\n\nThe rest.\n") and "what stood there" not in text
    assert "| Table II | SVD-LLM beats SVD | at 4 of 4 ratios | holds at 4 of 4 ratios × seeds |" in text
    assert "not run" in text.splitlines()[-4]  # what is not decided is counted, not listed
    assert "| Eq. (6) |" not in text
    table.loc[table.id == "table2_prehab", "verdict"] = "holds at 4 of 4 ratios × seeds"
    assert verdicts.renewed(text, table, "laptop") != text


def test_a_readme_without_markers_and_verdicts_that_are_not_there_are_one_sentence(home, capsys):
    (home / "README.md").write_text("# Title\n")
    assert __main__.main(["verdicts"]) == 2
    assert "there is no figures/laptop/verdicts.csv: run laptop 10" in capsys.readouterr().err
    with pytest.raises(ValueError, match="README.md has no section of verdicts"):
        verdicts.renewed("# Title\n", pandas.DataFrame({"status": [], "group": []}), "laptop")


def test_this_readme_says_what_the_committed_verdicts_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert verdicts.renewed(readme, verdicts.stored("laptop", ROOT), "laptop") == readme, (
        "python -m prehab_lib verdicts"
    )


def test_the_committed_verdicts_are_of_the_claims_as_they_stand():
    table = verdicts.stored("laptop", ROOT)
    assert list(table.columns) == verdicts.COLUMNS
    told = list(table[["id", "group", "where", "says"]].itertuples(index=False, name=None))
    assert told == [(one.id, one.group, one.where, one.says) for one in audit.claims()], "run laptop 10, then figures"
    about = json.loads((ROOT / "figures" / "laptop" / "verdicts.json").read_text(encoding="utf-8"))["about"]
    assert about["profile"] == "laptop"
