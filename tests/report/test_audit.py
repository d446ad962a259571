"""The audit: verdicts come from results, and a result that was changed, mixed or left alone is refused."""

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from prehab_lib.report import arithmetic, audit, finished, pairs, verdicts
from prehab_lib.runs import plan
from tests.profiles import ABOUT, SCORES, curves, enter, line, vit_records, write_run

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
EFFECTS = [claim for claim in audit.claims() if "records" in claim]
CHECKS = [claim for claim in audit.claims() if "check" in claim]


@pytest.fixture
def home(tmp_path, monkeypatch):
    return enter(tmp_path, monkeypatch)


def judged(home):
    """Claim -> its row, of runs/laptop."""
    return audit.judge(audit.results(home / "runs" / "laptop")).set_index("id")


def test_effects_come_from_records(home):
    """SVD-LLM is 20 points above SVD in every seed; prehab lies within half a point of its control."""
    found = judged(home)
    assert found.verdict["table2_svdllm_svd"] == "supported: +20.0 [20.0, 20.0] ratio points"
    assert found.status["table2_prehab"] == "supported"
    assert found.verdict["control_vit"] == "equivalent: +0.0 [−0.2, 0.2] ratio points"
    assert found.status["table2_fwsvd_svd"] == "undecided" and "unseen" in found.verdict["table2_fwsvd_svd"]
    assert found.status["table2_lora"] == found.verdict["table2_lora"] == "not run"
    sides = found.loc["control_vit", ["paper", "ours"]]
    best = "no control; +6.6 ratio points over SVD-LLM"
    assert tuple(sides) == (best, "small ViT, digit pairs, 5 seeds, 60% removed")
    row = found.loc["control_vit", ["seeds", "removed", "unit", "paper_effect", "visible"]]
    assert tuple(row)[:3] == (5, 0.6, "ratio points") and row.paper_effect == pytest.approx(6.57, abs=0.01)
    assert found.visible["control_vit"] == pytest.approx((found.high - found.low)["control_vit"] / 2)


def test_what_has_not_run_says_so_and_what_the_paper_found(home):
    nothing = audit.judge(audit.results(None)).set_index("id")
    assert set(nothing.status[[claim["id"] for claim in EFFECTS + CHECKS]]) == {"not run"}
    assert nothing.verdict["table2_size"].startswith("not tested here: it needs ImageNet-1K")
    assert nothing.paper["table2_prehab"] == "+6.6 ratio points" and nothing.paper["fig2"] == "+67.0 %"
    assert nothing.paper["table2_svdllm_svd"] == "+27.9 points", "SVD lies beyond the paper's own curve"
    fails = nothing.verdict["sum_changes"]  # the paper's own numbers need no run
    assert fails == "fails: Table IV, 40%, C4, λ = 0.001" and nothing.status["sum_repeats"] == "passes"
    assert audit.results(home / "runs" / "lab") == []


def test_runs_of_a_grid_are_averaged_seed_by_seed_and_a_check_is_as_printed(home):
    """Two tasks: prehab + 3 and − 1 against its control, one ratio point in the mean of each seed."""
    for task, gain in (("cola", 3.0), ("sst2", -1.0)):
        records = [one | {"paper_table": "III", "dataset": task} for one in vit_records() if one["arm"] == "control"]
        moved = [one | {"arm": "prehab", "control": False, "lam": 0.1, "tail": 0.05} for one in records]
        records += [one | {"value": one["value"] + gain} for one in moved]
        about = ABOUT | {"data": task}
        write_run(home, f"04_bert_glue.{task}", records, about=about, scale=curves(dataset=task))
    records = [one for one in records if one["seed"] != 4]  # the last task lacks a seed: it counts for none
    write_run(home, "04_bert_glue.sst2", records, about=about, scale=curves(dataset=task))
    lines = [line("Eq. (6) is the gradient of Eq. (5)", "fails"), line("something else")]
    write_run(home, "01_surrogates", claims=lines)
    found = judged(home)
    assert found.verdict["control_bert"] == "supported: +1.0 [1.0, 1.0] ratio points"
    assert found.ours["control_bert"] == "small ViT, cola, sst2, 4 seeds, 60% removed"
    assert tuple(found.loc["eq6", ["status", "verdict", "ours"]]) == ("fails", "fails", "tiny")
    assert found.differs["eq6"] == "01_surrogates: no certificate"


def test_a_result_file_that_was_changed_is_refused(home):
    negative = [one | {"value": -one["value"]} for one in vit_records()]
    without = [one for one in vit_records() if (one["arm"], one["seed"]) != ("svd", 1)]
    for records, sentence in (
        (negative, "top1_percent = -50, higher being better, is no score of svd"),
        (without, "do not both stand at 60% removed, seed 1"),
    ):
        write_run(home, "03_vit", records)
        with pytest.raises(ValueError, match=f"03_vit: .*{sentence}"):
            judged(home)
    swapped = {"svd": "svd_llm", "svd_llm": "svd"}
    write_run(home, "03_vit", [one | {"arm": swapped.get(one["arm"], one["arm"])} for one in vit_records()])
    assert judged(home).status["table2_svdllm_svd"] == "reversed", "a swap cannot be told, but turns the verdict"


def test_profiles_are_not_mixed(home):
    smoke = ABOUT | {"profile": "smoke"}
    mine, other = (line("Table IV: SVD-LLM beats SVD", profile=name) for name in ("laptop", "smoke"))
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
    write_run(home, "03_vit", vit_records(), about=about)
    found = judged(home).differs
    assert found["table2_prehab"] == "03_vit: torch 2.6.0, commit fedcba98+dirty"
    assert found["table4_svdllm_svd"] == ""
    write_run(home, "03_vit.old", vit_records())  # the plan has it no more
    runs = audit.results(home / "runs" / "laptop")
    assert [run.name for run in runs] == ["03_vit", "04_bert_glue", "05_llama"]
    assert finished.usual(runs)["torch"] == "2.15.0"


def test_a_changed_table_of_the_paper_stops_everything(home, monkeypatch):
    records = arithmetic.paper.records()
    records[5]["value"] += 0.01
    monkeypatch.setattr(arithmetic.paper, "records", lambda *_: records)
    with pytest.raises(ValueError, match="paper_tables.json is not as the paper printed it"):
        judged(home)


def test_a_status_follows_its_records(home):
    for change, starts, unit in (
        ({"tail": 0.095}, "not treated: ", "ratio points"),
        ({"tail": None}, "equivalent: ", "ratio points"),
        ({"value": 5.0}, "reversed: −39.5 ", "] points"),  # beyond the curve: in points of accuracy
    ):
        records = [one | change if one["arm"] == "prehab" and one["removed"] == 0.6 else one for one in vit_records()]
        write_run(home, "03_vit", records)
        verdict = judged(home).verdict["control_vit"]
        assert verdict.startswith(starts) and verdict.endswith(unit), (change, verdict)


def test_one_seed_decides_nothing_and_without_a_curve_there_are_points_alone(home):
    one_seed = [one for one in vit_records() if one["seed"] == 0]
    write_run(home, "03_vit", one_seed)
    row = judged(home).loc["table2_prehab"]
    assert (row.status, row.verdict) == ("undecided", "undecided: +4.2 ratio points, one seed")
    write_run(home, "03_vit", vit_records(), scale=[])
    row = judged(home).loc["table2_prehab"]
    assert row.unit == "points" and row.paper_effect == pytest.approx(19.74) and row.paper == "+19.7 points"
    gains = [ours - theirs for ours, theirs in zip(SCORES["prehab"], SCORES["svd_llm"], strict=True)]
    assert row["mean"] == pytest.approx(sum(gains) / 5)
    assert row.status == "supported"  # also where the paper's effect is larger


def test_a_margin_asks_for_no_worse_not_for_better():
    claim = next(claim for claim in audit.claims() if claim["id"] == "preserves_vit")
    for loss, status in ((0.5, "supported"), (1.5, "reversed")):
        records = []
        for seed in range(5):
            fields = dict(removed=0.0, seed=seed, metric="top1_percent", higher_is_better=True, control=False)
            fields["paper_table"] = "II"
            records.append(fields | dict(arm="original", method="original", value=90.0 + seed))
            value = 90.0 + seed - loss + seed / 100
            records.append(fields | dict(arm="prehab", method="prehab", lam=0.1, value=value))
        row = verdicts.verdict(claim, pairs.differences(records, [], claim["records"]))
        assert row["status"] == status and row["unit"] == "points", row


def test_the_audit_comes_last_for_it_reads_the_others():
    audit_book = json.loads((NOTEBOOKS / "10_audit.ipynb").read_text(encoding="utf-8"))
    assert audit_book["metadata"]["prehab"] == {"last": True}


def test_every_entry_is_a_claim_with_one_kind_of_evidence():
    claims = audit.claims()
    assert len({claim["id"] for claim in claims}) == len(claims) >= 50
    assert list(dict.fromkeys(claim["group"] for claim in claims)) == list(audit.GROUPS)
    assert len({(claim["group"], claim["where"], claim["says"]) for claim in claims}) == len(claims)
    assert {claim["arithmetic"] for claim in claims if "arithmetic" in claim} == set(arithmetic.CHECKS)
    kinds = {"records", "check", "arithmetic", "not_tested"}
    known = plan.notebooks(NOTEBOOKS.parent)
    for claim in claims:
        extra = {"paper", "notebook"} | ({"margin", "like"} if "records" in claim else set())
        assert claim.keys() - kinds - extra == {"id", "group", "where", "says"}, claim["id"]
        assert sum(bool(claim.get(kind)) for kind in kinds) == 1, claim["id"]
        decided = "records" in claim or "check" in claim
        assert claim.get("notebook") in known if decided else "notebook" not in claim, claim["id"]
    for claim in EFFECTS:
        pairs.differences([], [], claim["records"])  # raises where no field names two sides


def test_each_check_is_printed_by_its_notebook():
    for claim in CHECKS:
        cells = json.loads((NOTEBOOKS / f"{claim['notebook']}.ipynb").read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        text = "".join("".join(output.get("text", "")) for output in outputs)
        lines = re.findall(r"^(.*): (?:passes|fails) \| ", text, re.MULTILINE)
        assert any(fnmatchcase(one, claim["check"]) for one in lines), (claim["id"], lines)
