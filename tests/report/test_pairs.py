"""Pairs: who beats whom, and which records are refused before anybody asks."""

import pytest

from prehab_lib.report import pairs


def record(arm, value, removed=0.4, seed=0, metric="top1_percent", **other):
    up = metric != "perplexity"
    made = dict(method=arm, arm=arm, removed=removed, value=value, seed=seed, metric=metric, higher_is_better=up)
    return made | dict(control=arm == "control", paper_table="II") | other


def judged(records, **fields) -> list[bool]:
    return list(pairs.compare(records, fields).values())


TWO = [record("prehab", 72.0), record("svd_llm", 70.0), record("prehab", 60.0, 0.6), record("svd_llm", 60.0, 0.6)]


def test_a_win_and_a_tie_and_of_perplexities_the_lower_one():
    assert pairs.compare(TWO, {"arm": "prehab > svd_llm"}) == {("", 0.4, 0): True, ("", 0.6, 0): False}
    assert judged(TWO, arm="svd_llm > prehab") == [False, False]
    lower = [record("prehab", 7.0, metric="perplexity"), record("svd_llm", 8.0, metric="perplexity")]
    assert judged(lower, arm="prehab > svd_llm") == [True]
    several = [one | {"dataset": name, "seed": seed} for name in "ba" for seed in (1, 0) for one in TWO]
    found = pairs.compare(several, {"arm": "prehab > svd_llm"})
    assert list(found) == sorted(found) and len(found) == 8
    assert pairs.cases(found) == "columns × ratios × seeds" and pairs.cases([("a", 0.2, 0)]) == "ratios"


def test_what_a_side_may_be():
    dense = [record("prehab", 90.0, 0.0), record("base", 89.0, 0.0), *TWO]
    lora = [*TWO[:2], record("prehab", 80.0, lora=True), record("svd_llm", 81.0, lora=True)]
    lams = [record(f"λ={lam}", 70.0 - lam, lam=lam, method="prehab") for lam in (0.1, 5.0, 10.0)]
    lams += [record("control", 60.0, lam=0.0, method="prehab")]
    for records, fields, held in (
        (lora, dict(arm="prehab > svd_llm"), True),  # recovered models are apart from the others
        (lora, dict(arm="prehab > svd_llm", lora=True), False),
        (lora, dict(arm="svd_llm", lora="true > false"), True),
        (lams, dict(method="prehab", lam="min > max"), True),
        (lams, dict(method="prehab", lam="max > min"), False),
        (lams[1:2] + lams[3:], dict(arm="λ=* > control"), True),
        (TWO, dict(arm="prehab > svd_llm", highest=True), False),
        (dense, dict(arm="prehab > base", uncut=True), True),
    ):
        assert judged(records, **fields) == [held], fields
    assert judged(dense, arm="prehab > base") == judged([], arm="prehab > base") == []


def test_a_lead_that_grows():
    lead = {0.2: 1.0, 0.4: 3.0, 0.5: 3.0, 0.6: 9.0}
    records = [record("svd_llm", 50.0, removed) for removed in lead]
    records += [record("prehab", 50.0 + gain, removed) for removed, gain in lead.items()]
    found = pairs.compare(records, {"arm": "prehab > svd_llm", "grows": True})
    assert found == {("", 0.4, 0): True, ("", 0.5, 0): False, ("", 0.6, 0): True}


def test_what_has_no_partner_or_two_values_is_refused():
    with pytest.raises(ValueError, match="do not both stand at 60% removed, seed 0"):
        judged(TWO[:3], arm="prehab > svd_llm")
    with pytest.raises(ValueError, match="two scores for arm prehab at 40% removed, seed 0"):
        judged([*TWO, record("prehab", 1.0)], arm="prehab > svd_llm")
    with pytest.raises(ValueError, match="no field says"):
        judged(TWO, arm="prehab")


def test_the_papers_own_count():
    for fields, held, cases in (
        (dict(paper_table="II", arm="prehab > svd_llm"), 4, 4),
        (dict(paper_table="III", arm="prehab > svd_llm"), 27, 27),
        (dict(paper_table="IV", arm="prehab > svd_llm", paper_dataset="C4"), 1, 3),
        (dict(paper_table="IV", arm="prehab > svd_llm", lora=True), 6, 6),
        (dict(paper_table="IV", arm="prehab", lora="true > false"), 5, 6),  # 7.03 becomes 7.24
        (dict(paper_table="V", method="prehab", lam="max > min", highest=True), 0, 1),
    ):
        found = judged(pairs.printed(), **fields)
        assert (sum(found), len(found)) == (held, cases), fields


WITH_CONTROL = [record("svd_llm", 70.0), record("prehab", 72.0), record("control", 71.0)]


def test_a_score_that_cannot_be_is_refused():
    pairs.check("03_vit", WITH_CONTROL)
    perplexity = {"metric": "perplexity", "value": 0.5, "higher_is_better": False}
    changes = [{"value": -72.0}, {"value": 172.0}, {"higher_is_better": False}, perplexity]
    changes += [{"metric": "matthews", "value": 1.5}, {"metric": "accuracy", "value": 72.0}]
    for changed in changes:
        with pytest.raises(ValueError, match="03_vit: .* is no score of prehab: its result.json was changed"):
            pairs.check("03_vit", [WITH_CONTROL[0], WITH_CONTROL[1] | changed, WITH_CONTROL[2]])


def test_a_table_without_control_is_refused():
    with pytest.raises(ValueError, match="03_vit: its scores beside Table II have no control row"):
        pairs.check("03_vit", WITH_CONTROL[:2])
    pairs.check("02_rulers", [record("svd", 10.0, paper_table=None)])  # no table of the paper's, nothing prepared
    for place in ({"removed": 0.6}, {"seed": 1}, {"lora": True}, {"dataset": "cola"}):
        both = [*WITH_CONTROL, *(one | place for one in WITH_CONTROL)]
        pairs.check("04_bert", both)
        with pytest.raises(ValueError, match="04_bert: Table II: prehab has no control"):
            pairs.check("04_bert", both[:-1])
    fields = dict(paper_table=None, part="prehab", metric="perplexity")
    prepared = record("prehab", 9.0, method="gram × uniform", **fields)
    control = record("control", 9.5, method="gram × zero_sum", **fields)  # of another ruler
    with pytest.raises(ValueError, match="07_ranks: its table of perplexity: prehab has no control"):
        pairs.check("07_ranks", [prepared, control])
    pairs.check("07_ranks", [prepared, control | {"method": "gram × uniform"}])
