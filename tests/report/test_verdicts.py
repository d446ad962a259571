"""The page of verdicts, and the committed one of the claims that are decided."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from prehab_lib import __main__
from prehab_lib.report import audit, pairs, report, verdicts
from tests.profiles import ABOUT, enter, line, vit_records, write_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    enter(tmp_path, monkeypatch)
    write_run(tmp_path, "05_llama", vit_records())
    about = ABOUT | {"versions": ABOUT["versions"] | {"torch": "2.6.0"}}
    ranks = [one | {"part": "grid", "paper_table": None} for one in vit_records()]
    methods = {"svd": "gram × zero_sum", "svd_llm": "gram_logit × greedy"}
    ranks = [one | {"method": methods[one["arm"]]} for one in ranks if one["arm"] in methods]
    write_run(tmp_path, "07b_ranks_compared", ranks, about=about)
    write_run(tmp_path, "01_surrogates", claims=[line("Eq. (6) is the gradient of Eq. (5)", "fails")])
    return tmp_path


def cells(lines: list[str], start: str) -> list[str]:
    found = next(one for one in lines if one.startswith(f"| {start}"))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", found)[1:-1]]


def test_report_and_notebook_print_the_same_page(home):
    runs = audit.results(home / "runs" / "laptop")
    page = audit.page(audit.judge(runs), runs)
    report.write("laptop")
    written = home / "runs" / "laptop" / "report.md"
    assert "\n".join(page) in written.read_text()
    assert page[0] == audit.counted(audit.judge(runs).status) and page[0].startswith(f"{len(audit.claims())} claims: ")
    ours = ["+6.6 ratio points", "small ViT, digit pairs, 5 seeds, 60% removed"]
    ours += ["**supported**: +4.0 [3.4, 4.6] ratio points", ""]
    assert cells(page, "Table II | prehab (nuclear")[2:] == ours
    assert cells(page, "Eq. (6) | it is the gradient")[4] == "**fails**"
    differing = ["**supported**: +20.0 [20.0, 20.0] ratio points", "07b_ranks_compared: torch 2.6.0"]
    assert cells(page, "IO-SVD | it beats")[4:] == differing and "torch 2.15.0" in page[2]
    rows = [cells([one], one[2:9]) for one in page if one.startswith("| ")]
    assert all(len(row) == 6 and not any(re.search(r"\d of \d", cell) for cell in row) for row in rows)
    assert "audit.page(judged, finished)" in (ROOT / "notebooks" / "10_audit.ipynb").read_text(encoding="utf-8")
    write_run(home, "05_llama", vit_records(), profile="smoke")
    report.write("laptop")  # what cannot be judged says why, and the rest is printed
    text = written.read_text()
    assert "Not judged: runs/laptop mixes profiles" in text and "## 03_vit" in text
    assert "**What the paper claims**" not in text


def test_the_decided_ones_are_written_beside_the_committed_table(home, capsys):
    assert __main__.main(["verdicts", "laptop"]) == 2
    assert "there is no figures/laptop/verdicts.csv: run laptop 10" in capsys.readouterr().err
    folder = home / "figures" / "laptop"
    folder.mkdir(parents=True)
    table = audit.judge(audit.results(home / "runs" / "laptop"))
    table.loc[table.id == "table2_svdllm_svd", "says"] = "the smallest |ΔL|"
    table.to_csv(folder / "verdicts.csv", index=False)
    assert __main__.main(["verdicts", "laptop"]) == 0
    assert capsys.readouterr().out == "written: figures/laptop/verdicts.md\n"
    text = (folder / "verdicts.md").read_text()
    assert r"| Table II | the smallest \|ΔL\| | +27.9 points | supported: +20.0 [20.0, 20.0] ratio points |" in text
    assert "not run" in text.splitlines()[-1]  # what is not decided is counted, not listed
    assert "| Eq. (6) | it is the gradient of Eq. (5) | printed as such | fails |" in text
    assert "| Table II † |" not in text
    for status in audit.DECIDED:
        assert f"- **{status}**: " in text


def test_the_committed_verdicts_are_of_the_claims_as_they_stand():
    folder = ROOT / "figures" / "laptop"
    table = pandas.read_csv(folder / "verdicts.csv", keep_default_na=False)
    assert list(table.columns) == list(audit.judge([]).columns)
    fields = ["id", "group", "where", "says"]
    claims = [[claim[name] for name in fields] for claim in audit.claims()]
    assert table[fields].to_numpy().tolist() == claims, "run laptop 10, then figures"
    about = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))["about"]
    assert about["profile"] == "laptop"
    page = (folder / "verdicts.md").read_text(encoding="utf-8")
    assert page == audit.text(table, "laptop"), "python -m prehab_lib verdicts laptop"


def test_the_statuses_on_real_models_come_from_the_committed_scores():
    folder = ROOT / "figures" / "pretrained"
    scores, table = (pandas.read_csv(folder / f"real_{name}.csv") for name in ("scores", "effects"))
    records, curves = pairs.of_table(scores, arm="untouched", method="svd_llm")
    assert curves and all(len({*curve["removed"]}) == len(curve["removed"]) for curve in curves)
    assert verdicts.paper_effect(next(c for c in audit.claims() if c["id"] == "real_llama"), "points") > 7
    found = verdicts.of_notebook("12_real_models", SimpleNamespace(records=records, curves=curves))
    assert found.id.tolist() == table.id.tolist() and found.status.tolist() == table.status.tolist()
    assert found["mean"].to_numpy() == pytest.approx(table["mean"].to_numpy(), rel=1e-4, abs=1e-6, nan_ok=True)
    worse = [record | {"value": 2 * record["value"]} if record["arm"] == "nuclear-1" else record for record in records]
    changed = verdicts.of_notebook("12_real_models", SimpleNamespace(records=worse, curves=curves))
    assert changed["mean"].iloc[0] < found["mean"].iloc[0]
