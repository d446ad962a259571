"""Two runs of a profile with other seeds: what is run, what is compared, and when it fails."""

import os
import shutil

import pytest

from prehab_lib import run
from prehab_lib.runs import listed
from prehab_lib.runs.plan import Run
from tests.beside import load
from tests.profiles import curves, enter, line, vit_records, write_run

stability = load("cluster/stability.py")
EQ6 = "Eq. (6) is the gradient of Eq. (5)"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Both sides with the same scores, seeds 0 to 4 and 100 to 104."""
    enter(tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "runs")
    for shift in stability.SHIFTS:
        write_side(tmp_path, shift, vit_records())
    return tmp_path


def write_side(home, shift, records):
    """The runs of one side, with these scores."""
    side = home / "runs" / ".stability" / str(shift)
    records, scale = ([one | {"seed": one["seed"] + shift} for one in some] for some in (records, curves()))
    write_run(side, "03_vit", records, scale=scale)
    write_run(side, "01_surrogates", claims=[line(EQ6, "fails")])
    shutil.copytree(side / "runs" / "laptop", side / "laptop", dirs_exist_ok=True)


def test_equal_statuses_pass_and_too_many_others_fail(home, capsys):
    assert stability.report("laptop") == 0
    text = capsys.readouterr().out
    table = (home / "runs" / ".stability" / "laptop.md").read_text(encoding="utf-8")
    assert text.startswith(table) and text.endswith("written: runs/.stability/laptop.md\n")
    assert "statuses differ. At most 3 may." in text and "not run" not in text and "not tested" not in text
    row = next(one for one in text.splitlines() if "| control_vit " in one)
    assert row.count("| equivalent ") == 2 and row.count("ratio points") == 2
    for moved, code, names in (
        ({"svd": 45}, 0, ": table2_fwsvd_svd, table2_svdllm_svd."),
        ({"svd": 45, "control": -40, "prehab": -30}, 1, "table2_prehab"),
    ):
        records = vit_records()
        for one in records:  # far below or above all others, in the second run alone
            one["value"] += moved.get(one["arm"], 0)
            one["value"] = min(max(one["value"], 0.0), 100.0)
        write_side(home, 100, records)
        assert stability.report("laptop") == code
        assert names in capsys.readouterr().out


def test_both_sides_are_run_with_seeds_and_caches_of_their_own(home, monkeypatch):
    ran = []
    monkeypatch.setenv("PREHAB_CACHE", "elsewhere")

    def main(planned, store, width):
        ran.append(([one.params for one in planned], store.runs, width, os.environ["PREHAB_CACHE"]))
        return 0

    books = [
        Run("03_vit", home / "03_vit.ipynb", "laptop", {"seeds": [0, 4], "lam": 0.1}),
        Run("08_cost", home / "08_cost.ipynb", "laptop", {"steps": 3}),
        Run("10_audit", home / "10_audit.ipynb", "laptop", {"seeds": [1]}, last=True),
    ]
    monkeypatch.setattr(run, "main", main)
    monkeypatch.setattr(listed, "planned", lambda arguments: books)
    assert stability.main(["laptop", "-j", "3"]) == 0
    for shift, (params, folder, width, cache) in zip(stability.SHIFTS, ran, strict=True):
        assert params == [{"seeds": [shift, 4 + shift], "lam": 0.1}, {"steps": 3}]
        assert (folder, width) == (home / "runs" / ".stability" / str(shift), 3) and cache == str(folder / "cache")
    monkeypatch.setattr(run, "main", lambda *_: 1)
    assert stability.main(["laptop"]) == 1, "nothing is compared where a run failed"


def test_nothing_to_compare_is_no_agreement(home):
    for shift in stability.SHIFTS:
        shutil.rmtree(stability.folder(shift) / "laptop")
    with pytest.raises(ValueError, match="there is no claim of laptop to compare"):
        stability.report("laptop")
