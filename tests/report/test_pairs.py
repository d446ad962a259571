"""Pairs: differences seed by seed, and which records are refused before anybody asks."""

import math

import pandas
import pytest

from prehab_lib.report import pairs


def record(arm, value, removed=0.6, seed=0, metric="top1_percent", **other):
    up = metric != "perplexity"
    made = dict(method=arm, arm=arm, removed=removed, value=value, seed=seed, metric=metric, higher_is_better=up)
    return made | dict(control=arm == "control", paper_table="II") | other


def natural(records, **fields) -> list[float]:
    found = pairs.differences(records, [], fields)
    return found.natural.tolist() if len(found) else []


TWO = [record("prehab", 72.0, 0.4), record("svd_llm", 70.0, 0.4), record("prehab", 60.0), record("svd_llm", 60.5)]
CURVE = {"dataset": "", "seed": 0, "removed": [0.0, 0.4, 0.8], "merits": [90.0, 70.0, 30.0]}


def test_a_difference_is_taken_at_one_fraction_seed_by_seed():
    assert natural(TWO, arm="prehab > svd_llm") == [-0.5]
    assert natural(TWO, arm="prehab > svd_llm", removed=0.4) == [2.0]
    lower = [record("prehab", 7.0, metric="perplexity"), record("svd_llm", 14.0, metric="perplexity")]
    assert natural(lower, arm="prehab > svd_llm") == [pytest.approx(math.log(2))]
    loss = [one | {"metric": "loss", "higher_is_better": False} for one in TWO]
    assert natural(loss, arm="prehab > svd_llm") == [0.5]
    several = [one | {"dataset": name, "seed": seed} for name in "ba" for seed in (1, 0) for one in TWO]
    found = pairs.differences(several, [], {"arm": "prehab > svd_llm"})
    assert list(found.index) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert found.unit.unique().tolist() == ["points"] and found.points.isna().all() and found.treated.isna().all()


def test_ratio_points_are_read_off_the_curve_of_the_same_seed_and_data():
    """72 lies at 36 % removed, 66 at 44 %; 95 is better than the uncut model, which is on no curve."""
    records = [record("prehab", 72.0), record("svd_llm", 66.0), record("prehab", 95.0, seed=1)]
    records += [record("svd_llm", 66.0, seed=1), record("prehab", 72.0, seed=2), record("svd_llm", 66.0, seed=2)]
    found = pairs.differences(records, [CURVE, CURVE | {"seed": 1}], {"arm": "prehab > svd_llm"})
    assert found.points.iloc[0] == pytest.approx(8) and found.points.iloc[1:].isna().all()


def test_what_a_side_may_be():
    dense = [record("prehab", 90.0, 0.0), record("base", 89.0, 0.0), *TWO]
    lora = [*TWO, record("prehab", 80.0, lora=True), record("svd_llm", 81.0, lora=True)]
    lams = [record(f"λ={lam}", 70.0 - lam, lam=lam, method="prehab") for lam in (0.5, 5.0, 10.0)]
    lams += [record("control", 60.0, lam=0.0, method="prehab"), record("svd_llm", 50.0, lam=None)]
    ranks = [record("prehab", 1.0, 0.0, entropy_rank=6.0), record("control", 1.0, 0.0, entropy_rank=8.0)]
    for records, fields, difference in (
        (lora, dict(arm="prehab > svd_llm"), -0.5),  # recovered models are apart from the others
        (lora, dict(arm="prehab > svd_llm", lora=True), -1.0),
        (lora, dict(arm="svd_llm", lora="true > false"), 20.5),
        (lams, dict(method="prehab", lam="min > max"), 9.5),
        (lams, dict(method="prehab > svd_llm", lam="max > ~"), 10.0),
        (lams[1:2] + lams[3:], dict(arm="λ=* > control"), 5.0),
        (dense, dict(arm="prehab > base", removed=0), 1.0),
        (TWO, dict(arm="prehab > svd_llm", minus=0.4), -2.5),
        (TWO, dict(arm="prehab > svd_llm", removed=0.4, relative=True), 100 * 2 / 70),
        (ranks, dict(arm="prehab > control", removed=0, of="entropy_rank"), 25.0),
    ):
        assert natural(records, **fields) == [pytest.approx(difference)], fields
    assert natural(dense, arm="prehab > base") == natural([], arm="prehab > base") == []


def test_the_tail_is_set_against_the_control_of_the_same_place():
    base = [record("prehab", 60.0, seed=seed, lam=0.1, tail=0.08 - 0.02 * seed) for seed in (0, 1)]
    base += [record("control", 60.0, seed=seed, lam=0.0, tail=0.1) for seed in (0, 1)]
    recovered = [one | {"lora": True, "tail": None} for one in base]
    uncut = [one | {"removed": 0.0, "tail": None} for one in base]
    rulers = [one | {"part": "rulers", "tail": 0.5} for one in base]  # of another part: not asked
    records = [*(one | {"part": "arms"} for one in base + recovered + uncut), *rulers]
    for fields in ({}, {"lora": True}, {"removed": 0}):
        found = pairs.differences(records, [], {"part": "arms", "arm": "prehab > control"} | fields)
        assert found.treated.tolist() == pytest.approx([0.2, 0.4]), fields
    alone = pairs.differences(base, [], {"arm": "control > prehab"})
    assert alone.treated.isna().all(), "a control is no dose"
    named = [one | {"method": "prehab"} for one in base]  # one name for all, told apart by λ
    runs = [*named, *(one | {"lam": 1.0} for one in named[:2])]
    dose = pairs.differences(runs, [], dict(method="prehab", lam="max > min"))
    assert dose.treated.tolist() == pytest.approx([0.2, 0.4])


def test_what_has_no_partner_or_two_values_is_refused():
    with pytest.raises(ValueError, match="do not both stand at 60% removed, seed 1"):
        natural([*TWO, record("prehab", 1.0, seed=1)], arm="prehab > svd_llm")
    half = [*TWO, record("prehab", 1.0, seed=1)]  # a run that is not there yet
    assert natural(half, arm="prehab > svd_llm", partial=True) == [-0.5]
    assert natural([record("prehab", 1.0)], arm="prehab > svd_llm", partial=True) == []
    with pytest.raises(ValueError, match="two scores for arm prehab at 60% removed, seed 0"):
        natural([*TWO, record("prehab", 1.0)], arm="prehab > svd_llm")
    with pytest.raises(ValueError, match="no field says"):
        natural(TWO, arm="prehab")


def test_the_papers_own_effects_on_the_same_axis():
    """Gain of prehab over SVD-LLM by fraction removed, in ratio points."""
    for place, gains in (
        ({"paper_table": "II"}, {0.2: 8.5, 0.4: 9.4, 0.5: 6.0, 0.6: 6.6}),
        ({"paper_table": "III"}, {0.2: 9.4, 0.4: 14.9, 0.6: 7.1}),
        ({"paper_table": "IV", "paper_dataset": "WikiText-2"}, {0.2: 7.3, 0.4: 7.7, 0.6: 4.5}),
    ):
        for removed, gain in gains.items():
            fields = place | {"arm": "prehab > svd_llm", "removed": removed}
            (found,) = pairs.differences(pairs.printed(), pairs.printed_curves(), fields).points
            assert found == pytest.approx(gain, abs=0.05), fields


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
    for place in ({"removed": 0.4}, {"seed": 1}, {"lora": True}, {"dataset": "cola"}):
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


def test_a_table_of_scores_gives_its_records_and_the_curve_of_a_plain_cut():
    rows = [record("untouched", value, removed, metric="perplexity") for removed, value in ((0.2, 20.0), (0.0, 10.0))]
    rows += [rows[0] | {"lora": True, "value": 15.0}, record("control", 12.0, 0.2, metric="perplexity")]
    table = pandas.DataFrame([{"lora": False, "dataset": "text", "dose": None} | row for row in rows])
    records, (curve,) = pairs.of_table(table, arm="untouched")
    assert len(records) == 4 and records[0]["dose"] is None
    assert curve == {"dataset": "text", "seed": 0, "removed": [0.0, 0.2], "merits": [-math.log(10.0), -math.log(20.0)]}
    up = table.assign(metric="kl", higher_is_better=False)
    assert pairs.of_table(up, arm="untouched")[1][0]["merits"] == [-10.0, -20.0]
