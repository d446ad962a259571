"""The audit: verdicts are counted from results, and a result that was changed, mixed or left alone is refused."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from prehab_lib.report import arithmetic, audit, pairs
from prehab_lib.runs import plan
from tests.profiles import ABOUT, enter, line, vit_claims, vit_records, write_run

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture
def home(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def verdicts(home) -> dict[str, audit.Verdict]:
    return {one.claim.id: one for one in audit.judge(audit.results(home / "runs" / "laptop"))}


def rewrite(home, change, name="03_vit", file="result.json"):
    place = home / "runs" / "laptop" / name / file
    content = json.loads(place.read_text())
    change(content)
    place.write_text(json.dumps(content))


def test_verdicts_are_counted_from_records(home):
    found = verdicts(home)
    assert found["table2_svdllm_svd"].text == "holds at 4 of 4 ratios × seeds"
    assert found["table2_prehab"].text == "holds at 3 of 4 ratios × seeds"
    assert found["table2_prehab"].paper == "at 4 of 4 ratios"
    assert found["table2_prehab"].ours == "small ViT, digit pairs, 2 seeds"
    assert found["control_vit"].text == "holds at 2 of 4 ratios × seeds"
    assert found["control_vit"].paper == "no control"
    assert found["control_vit_alone"].text == "holds at 4 of 4 ratios × seeds"  # no sentence says it, the records do
    assert found["fig2"].text == "holds at 2 of 2 ratios × seeds"  # seed 0: 3 then 7 points; seed 1: 0 then 3
    statuses = [found[id].status for id in ("table2_svdllm_svd", "table2_prehab", "control_vit", "table2_lora")]
    assert statuses == ["holds", "mostly", "rarely", "not run"]


def test_what_has_not_run_says_so(home):
    nothing = {one.claim.id: one for one in audit.judge(audit.results(None))}
    assert {one.status for one in nothing.values() if one.claim.evidence} == {"not run"}
    assert nothing["table2_size"].text.startswith("not tested here: it needs ImageNet-1K")
    assert nothing["sum_changes"].text == "holds at 31 of 32 numbers"  # the paper's own numbers need no run
    found = verdicts(home)["immediate"]  # one notebook of three
    assert (found.held, found.cases, found.missing) == (3, 4, ("04_bert_glue", "05_llama"))
    assert audit.results(home / "runs" / "lab") == []


def test_runs_of_a_grid_are_counted_together(home):
    sentence = "Table III: prehab beats SVD-LLM"
    for task, score in (("cola", 0.5), ("sst2", 0.9)):
        records = [
            one | dict(value=score + gain, metric="accuracy", paper_table="III", dataset=task)
            for one, gain in zip([r for r in vit_records() if r["arm"] != "svd"], [0.0] * 8 + [0.01] * 4, strict=True)
        ]
        write_run(home, f"04_bert_glue.{task}", records, [line(sentence, [True] * 4)])
    found = verdicts(home)["table3_prehab"]
    assert (found.text, found.missing) == ("holds at 8 of 8 runs × ratios × seeds", ())


def test_a_sentence_alone_is_taken_as_printed(home):
    write_run(home, "01_surrogates", claims=[line("Eq. (6) is the gradient of Eq. (5)", [False] * 3, of="layers")])
    found = verdicts(home)["eq6"]
    assert (found.text, found.ours, found.status) == ("does not hold: 0 of 3 layers", "tiny", "does not hold")
    assert found.differs == "01_surrogates: no certificate"


def flip(result):
    for one in result["records"]:
        one["value"] *= -1


def swap_prehab_and_svd_llm(result):
    for one in result["records"]:
        one["arm"] = {"prehab": "svd_llm", "svd_llm": "prehab"}.get(one["arm"], one["arm"])


def turn_direction(result):
    for one in result["records"]:
        one["higher_is_better"] = False


def drop_controls(result):
    result["records"] = [one for one in result["records"] if not one["control"]]


def drop_one_control(result):
    result["records"] = [
        one for one in result["records"] if not (one["control"] and one["removed"] == 0.6 and one["seed"])
    ]


def raise_one_score(result):
    next(one for one in result["records"] if one["arm"] == "prehab" and one["seed"])["value"] = 71.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (flip, "03_vit: top1_percent = -50, higher being better, is no score of svd"),
        (turn_direction, "03_vit: top1_percent = 50, lower being better, is no score of svd"),
        (swap_prehab_and_svd_llm, '03_vit: "Table II: SVD-LLM beats SVD" was printed|03_vit: .* has no control'),
        (
            raise_one_score,
            '03_vit: "Table II: prehab beats SVD-LLM" was printed as 3 of 4, but its records give 4 of 4',
        ),
        (drop_controls, "03_vit: its scores beside Table II have no control row"),
        (drop_one_control, "03_vit: Table II: prehab has no control .* at 60% removed, seed 1"),
    ],
)
def test_a_result_file_that_was_changed_is_refused(home, change, sentence):
    verdicts(home)
    rewrite(home, change)
    with pytest.raises(ValueError, match=sentence):
        verdicts(home)


def test_signs_that_agree_in_number_but_not_in_place_are_refused(home):
    claims = vit_claims()
    claims[1]["each"] = [False, True, True, True]  # three of four, as the records, but another one fails
    write_run(home, "03_vit", vit_records(), claims)
    with pytest.raises(ValueError, match="or other cases: result.json or claims.jsonl was changed"):
        verdicts(home)


def test_a_printed_claim_whose_records_are_gone_is_refused(home):
    write_run(home, "03_vit", [one for one in vit_records() if one["arm"] != "svd"], vit_claims())
    with pytest.raises(
        ValueError, match='"Table II: SVD-LLM beats SVD" was printed as 4 of 4, but its records give 0 of 0'
    ):
        verdicts(home)


@pytest.mark.parametrize("where", ["run", "result", "claims"])
def test_profiles_are_not_mixed(home, where):
    records, claims = vit_records(), [line("Table IV: SVD-LLM beats SVD", [True])]
    about, profile = ABOUT, "laptop"
    if where == "run":
        profile = "smoke"
    elif where == "result":
        about = ABOUT | {"profile": "smoke"}
    else:
        claims[0]["profile"] = "smoke"
    write_run(home, "05_llama", records, claims, about, profile)
    with pytest.raises(ValueError, match=r"runs/laptop mixes profiles \(.*05_llama is of smoke\)") as refused:
        verdicts(home)
    assert "\n" not in str(refused.value)


def test_a_folder_of_another_profile_is_not_taken_for_this_one(home):
    write_run(home, "03_vit", vit_records(), vit_claims(), folder="lab")
    with pytest.raises(ValueError, match="runs/lab mixes profiles"):
        audit.results(home / "runs" / "lab")


def test_other_versions_stand_in_their_row_alone(home):
    for name in ("04_bert_glue", "05_llama"):  # two runs make the usual versions, the third differs
        write_run(home, name, [one | {"paper_table": "IV"} for one in vit_records()])
    about = ABOUT | {"versions": ABOUT["versions"] | {"torch": "2.6.0"}, "commit": "fedcba9876543210+dirty"}
    write_run(home, "03_vit", vit_records(), vit_claims(), about)
    found = verdicts(home)
    assert found["table2_prehab"].differs == "03_vit: torch 2.6.0, commit fedcba98+dirty"
    assert found["table4_svdllm_svd"].differs == ""
    assert found["immediate"].differs == "03_vit: torch 2.6.0, commit fedcba98+dirty"
    assert audit.usual(audit.results(home / "runs" / "laptop"))["torch"] == "2.15.0"


def test_runs_that_the_plan_has_no_more_are_left_out(home):
    write_run(home, "03_vit.old", vit_records(), vit_claims())
    assert [run.name for run in audit.results(home / "runs" / "laptop")] == ["03_vit"]


def test_a_changed_table_of_the_paper_stops_everything(home, monkeypatch):
    records = arithmetic.paper.records()
    records[5]["value"] += 0.01
    monkeypatch.setattr(arithmetic.paper, "records", lambda *_: records)
    with pytest.raises(ValueError, match="paper_tables.json is not as the paper printed it"):
        verdicts(home)


def test_the_claims_are_complete_and_used():
    claims = audit.claims()
    assert len({one.id for one in claims}) == len(claims) >= 50
    assert {one.arithmetic for one in claims if one.arithmetic} == set(arithmetic.CHECKS)
    assert len({(one.group, one.where, one.says) for one in claims}) == len(claims)
    known = plan.notebooks(NOTEBOOKS.parent)
    assert {one.notebook for claim in claims for one in claim.evidence} <= set(known)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"evidence": {"notebook": "03_vit", "sentense": "x"}}, "claims.yaml: mine: .*sentense"),
        ({"evidence": {"notebook": "03_vit", "records": {"arm": "prehab"}}}, "claims.yaml: mine: .*no field says"),
        ({}, "claims.yaml: mine: give one of evidence, arithmetic, not_tested"),
        ({"arithmetic": "averages", "not_tested": "why"}, "give one of"),
        ({"arithmetic": "sums"}, "sums is no check of arithmetic.py"),
        ({"not_tested": "why", "verdict": "holds"}, "claims.yaml: mine: .*verdict"),  # no verdict in the file
    ],
)
def test_an_entry_that_is_no_claim_is_named(told, sentence):
    with pytest.raises(ValueError, match=sentence):
        audit._claim("mine", "paper", {"where": "here", "says": "this"} | told)


def printed_by(notebook: str) -> str:
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("text", "")) for output in outputs)


SENTENCES = sorted({(one.notebook, one.sentence) for claim in audit.claims() for one in claim.evidence if one.sentence})


@pytest.mark.parametrize(("notebook", "sentence"), SENTENCES)
def test_each_sentence_is_one_that_its_notebook_prints(notebook, sentence):
    printed = printed_by(notebook)
    told = [one.group(1) for one in re.finditer(r"^(.*): (?:holds at|does not hold: 0 of) ", printed, re.MULTILINE)]
    assert any(fnmatchcase(one, sentence.replace("{dataset}", "*")) for one in told), told


COUNTED = [
    one for claim in audit.claims() for one in claim.evidence if one.sentence and one.records and claim.group == "paper"
]


@pytest.mark.parametrize("evidence", COUNTED, ids=lambda one: one.sentence)
def test_what_a_notebook_says_of_the_paper_is_what_its_tables_say(evidence):
    printed = printed_by(evidence.notebook)
    found = pairs.compare(pairs.printed(), evidence.records)
    counts = re.findall(rf"^{re.escape(evidence.sentence)}: .* \| paper at (\d+) of (\d+)", printed, re.MULTILINE)
    assert set(counts) <= {(str(sum(found.values())), str(len(found)))}
