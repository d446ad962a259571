"""Parts of a plan: disjoint, complete, chains whole, and the last runs in none."""

import itertools
from pathlib import Path

import pytest

from prehab_lib import __main__
from prehab_lib.runs import shard
from prehab_lib.runs.plan import Run


def one(name: str, *needs: str, last=False) -> Run:
    return Run(name, Path(f"{name}.ipynb"), "lab", {}, needs, last=last)


GRID = [one(f"04_bert.{task}") for task in "abcdefgh"]
CHAINS = [one("a"), one("b", "a"), one("c"), one("d", "c"), one("e"), one("f", "e", "a"), one("g"), one("h", "g")]
PLANS = {"grid": GRID, "chains": CHAINS, "last": [*GRID, one("10_audit", last=True)], "one": [one("a")], "none": []}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 20])
def test_every_run_is_in_exactly_one_part_with_all_it_needs(name, n):
    planned = PLANS[name]
    parts = [[run.name for run in shard.part(planned, i, n)] for i in range(n)]
    together = list(itertools.chain.from_iterable(parts))
    assert sorted(together) == sorted(run.name for run in planned if not run.last)
    for part, run in itertools.product(parts, planned):
        assert run.name not in part or set(run.needs) <= set(part)
    order = [run.name for run in planned]
    assert all(part == sorted(part, key=order.index) for part in parts)


def test_a_grid_spreads_evenly_and_a_run_that_joins_chains_keeps_them_together():
    assert [len(shard.part(GRID, i, 3)) for i in range(3)] == [3, 3, 2]
    assert [sorted(chain) for chain in shard.chains(CHAINS)] == [["a", "b", "e", "f"], ["c", "d"], ["g", "h"]]


def test_what_is_left_for_later_is_said():
    planned = [*GRID[:3], one("10_audit", last=True)]
    later = "; 10_audit: by the same command without --shard, once all shards have ended"
    assert shard.note(planned, 0, 2) == f"shard 0 of 2 (from 0): 2 of 4 runs{later}"
    assert shard.note(planned, 4, 9) == f"shard 4 of 9 (from 0): 0 of 4 runs, for the plan has 3 parts{later}"
    assert shard.note(GRID[:3], 1, 9) == "shard 1 of 9 (from 0): 1 of 3 runs"  # it has one: nothing to explain
    assert shard.note(GRID, 1, 2) == "shard 1 of 2 (from 0): 4 of 8 runs"


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "1/0", "a/b", "1/2/3", "", "1.0/2", "/2"])
def test_a_wrong_part_is_refused_in_one_sentence(text, capsys, tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "00_a.ipynb", "1")  # else a part that is not refused is the checkout's own
    assert __main__.main(["run", "lab", f"--shard={text}"]) == 2  # "/2": a scheduler's variable that is not set
    said = capsys.readouterr().err
    assert said == f"prehab_lib: --shard {text}: write i/n with 0 <= i < n, as 0/8 to 7/8\n"


def test_the_parts_of_a_profile_fill_one_store(tmp_path, write_notebook, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("00_a", "01_b", "02_c"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "1")
    assert __main__.main(["run", "smoke", "--shard", "1/2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("note      shard 1 of 2 (from 0): 1 of 3 runs\n") and "started   01_b" in said
    assert [folder.name for folder in (tmp_path / "runs" / "smoke").glob("0*")] == ["01_b"]
    for words, line in (
        ["3/4", "0 of 3 runs, for the plan has 3 parts"],
        ["1/2", "already up to date: 1 of 1 runs are"],
    ):
        assert __main__.main(["run", "smoke", "--shard", words]) == 0
        assert line in capsys.readouterr().out
