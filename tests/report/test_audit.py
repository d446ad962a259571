"""The audit: verdicts are counted from results, and a result that was changed, mixed or left alone is refused."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from prehab_lib.report import arithmetic, audit, finished, pairs
from prehab_lib.runs import plan
from tests.profiles import ABOUT, enter, line, vit_claims, vit_records, write_run

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
BEATEN = vit_claims()[1]["each"]  # prehab against SVD-LLM
EVIDENCE = [(claim, entry) for claim in audit.claims() for entry in claim["evidence"]]


@pytest.fixture
def home(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def verdicts(home):
    """Claim -> its row, of runs/laptop."""
    return audit.judge(audit.results(home / "runs" / "laptop")).set_index("id")


def test_verdicts_are_counted_from_records(home):
    found = verdicts(home)
    for id, verdict, status in (
        ("table2_svdllm_svd", "holds at 4 of 4 ratios × seeds", "holds"),
        ("table2_prehab", "holds at 3 of 4 ratios × seeds", "mostly"),
        ("control_vit", "holds at 2 of 4 ratios × seeds", "rarely"),
        ("control_vit_alone", "holds at 4 of 4 ratios × seeds", "holds"),  # no sentence says it, the records do
        ("fig2", "holds at 2 of 2 ratios × seeds", "holds"),  # seed 0: 3 then 7 points; seed 1: 0 then 3
        ("table2_lora", "not run", "not run"),
    ):
        assert tuple(found.loc[id, ["verdict", "status"]]) == (verdict, status), id
    sides = found.loc["table2_prehab", ["paper", "ours"]]
    assert tuple(sides) == ("at 4 of 4 ratios", "small ViT, digit pairs, 2 seeds")
    assert found.paper["control_vit"] == "no control"


def test_what_has_not_run_says_so(home):
    nothing = audit.judge(audit.results(None)).set_index("id")
    assert set(nothing.status[[claim["id"] for claim, _ in EVIDENCE]]) == {"not run"}
    assert nothing.verdict["table2_size"].startswith("not tested here: it needs ImageNet-1K")
    assert nothing.verdict["sum_changes"] == "holds at 31 of 32 numbers"  # the paper's own numbers need no run
    found = verdicts(home).loc["immediate", ["held", "cases", "missing"]]  # one notebook of three
    assert tuple(found) == (3, 4, "04_bert_glue, 05_llama")
    assert audit.results(home / "runs" / "lab") == []


def test_runs_of_a_grid_are_counted_together_and_a_sentence_alone_as_printed(home):
    for task in ("cola", "sst2"):
        records = [one | {"paper_table": "III"} for one in vit_records() if one["arm"] != "svd"]
        write_run(home, f"04_bert_glue.{task}", records, [line("Table III: prehab beats SVD-LLM", BEATEN)])
    write_run(home, "01_surrogates", claims=[line("Eq. (6) is the gradient of Eq. (5)", [False] * 3, of="layers")])
    found = verdicts(home)
    grid = found.loc["table3_prehab"]
    assert (grid.verdict, grid.missing) == ("holds at 6 of 8 runs × ratios × seeds", "")
    alone = found.loc["eq6"]
    assert (alone.verdict, alone.ours, alone.status) == ("does not hold: 0 of 3 layers", "tiny", "does not hold")
    assert alone.differs == "01_surrogates: no certificate"


SWAPPED = {"svd": "svd_llm", "svd_llm": "svd"}
SPOILED = [  # what somebody did to the records of 03, and what is said
    (lambda one: one | {"value": -one["value"]}, "top1_percent = -50, higher being better, is no score of svd"),
    (lambda one: one | {"arm": SWAPPED.get(one["arm"], one["arm"])}, "SVD-LLM beats SVD.* 4 of 4, .* records give 0"),
    (lambda one: one | {"value": one["value"] + (one["arm"] == "prehab")}, "prehab beats SVD-LLM.* 3 of 4, .* give 4"),
    (lambda one: None if one["control"] else one, "its scores beside Table II have no control row"),
    (lambda one: None if one["arm"] == "svd" else one, "was printed as 4 of 4, but its records give 0 of 0"),
]


def test_a_result_file_that_was_changed_is_refused(home):
    for change, sentence in SPOILED:
        write_run(home, "03_vit", [record for record in map(change, vit_records()) if record], vit_claims())
        with pytest.raises(ValueError, match=f"03_vit: .*{sentence}"):
            verdicts(home)
    claims = vit_claims()
    claims[1]["each"] = [False, True, True, True]  # three of four, as the records, but another one fails
    write_run(home, "03_vit", vit_records(), claims)
    with pytest.raises(ValueError, match="or other cases: result.json or claims.jsonl was changed"):
        verdicts(home)
    (home / "runs" / "laptop" / "03_vit" / "result.json").write_text('{"about"')
    with pytest.raises(ValueError, match="result.json is not JSON: remove its folder and run the profile again"):
        verdicts(home)


def test_profiles_are_not_mixed(home):
    smoke = ABOUT | {"profile": "smoke"}
    mine, other = (line("Table IV: SVD-LLM beats SVD", [True], profile=name) for name in ("laptop", "smoke"))
    for claim, about, profile, folder in (
        (mine, ABOUT, "smoke", "laptop"),
        (mine, smoke, "laptop", "laptop"),
        (other, ABOUT, "laptop", "laptop"),
        (mine, ABOUT, "laptop", "lab"),
    ):
        write_run(home, "05_llama", vit_records(), [claim], about, profile, folder)
        with pytest.raises(ValueError, match=rf"runs/{folder} mixes profiles \(.*05_llama is of \w+\)"):
            audit.results(home / "runs" / folder)


def test_other_versions_stand_in_their_row_alone(home):
    for name in ("04_bert_glue", "05_llama"):  # two runs make the usual versions, the third differs
        write_run(home, name, [one | {"paper_table": "IV"} for one in vit_records()])
    about = ABOUT | {"versions": ABOUT["versions"] | {"torch": "2.6.0"}, "commit": "fedcba9876543210+dirty"}
    write_run(home, "03_vit", vit_records(), vit_claims(), about)
    found = verdicts(home).differs
    assert found["table2_prehab"] == found["immediate"] == "03_vit: torch 2.6.0, commit fedcba98+dirty"
    assert found["table4_svdllm_svd"] == ""
    write_run(home, "03_vit.old", vit_records(), vit_claims())  # the plan has it no more
    runs = audit.results(home / "runs" / "laptop")
    assert [run.name for run in runs] == ["03_vit", "04_bert_glue", "05_llama"]
    assert finished.usual(runs)["torch"] == "2.15.0"


def test_a_changed_table_of_the_paper_stops_everything(home, monkeypatch):
    records = arithmetic.paper.records()
    records[5]["value"] += 0.01
    monkeypatch.setattr(arithmetic.paper, "records", lambda *_: records)
    with pytest.raises(ValueError, match="paper_tables.json is not as the paper printed it"):
        verdicts(home)


def test_every_entry_is_a_claim_with_one_kind_of_evidence():
    claims = audit.claims()
    assert len({claim["id"] for claim in claims}) == len(claims) >= 50
    assert list(dict.fromkeys(claim["group"] for claim in claims)) == list(audit.GROUPS)
    assert len({(claim["group"], claim["where"], claim["says"]) for claim in claims}) == len(claims)
    assert {claim["arithmetic"] for claim in claims if "arithmetic" in claim} == set(arithmetic.CHECKS)
    kinds = {"evidence", "arithmetic", "not_tested"}
    for claim in claims:
        assert claim.keys() - kinds - {"paper"} == {"id", "group", "where", "says"}, claim["id"]
        assert sum(bool(claim.get(kind)) for kind in kinds) == 1, claim["id"]
        assert "paper" in claim or any("records" in entry for entry in claim["evidence"]), claim["id"]
    known = plan.notebooks(NOTEBOOKS.parent)
    for claim, entry in EVIDENCE:
        assert entry.keys() - {"sentence", "records"} == {"notebook"} and len(entry) > 1, claim["id"]
        assert entry["notebook"] in known, claim["id"]
        pairs.compare([], entry.get("records", {"arm": "prehab > svd"}))  # raises where no field names two sides


def printed_by(notebook: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", "")) for output in outputs)


def test_each_sentence_is_printed_by_its_notebook_which_says_of_the_paper_what_its_tables_say():
    for claim, entry in EVIDENCE:
        if "sentence" not in entry:
            continue
        text = printed_by(entry["notebook"])
        lines = re.findall(r"^(.*): (?:holds at|does not hold: 0 of) ", text, re.MULTILINE)
        pattern = entry["sentence"].replace("{dataset}", "*")
        assert any(fnmatchcase(one, pattern) for one in lines), (claim["id"], lines)
        if claim["group"] == "paper" and "records" in entry:
            found = pairs.compare(pairs.printed(), entry["records"])
            sentence = rf"^{re.escape(entry['sentence'])}: .* \| paper at (\d+) of (\d+)"
            counts = re.findall(sentence, text, re.MULTILINE)
            assert set(counts) <= {(str(sum(found.values())), str(len(found)))}, claim["id"]
