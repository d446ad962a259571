"""Prices: from a run that was the same, from one that costs the same, from the table, or none."""

import json
from pathlib import Path

import pytest

from prehab_lib import __main__
from prehab_lib.runs import plan, priced
from prehab_lib.runs.plan import Price, Run
from prehab_lib.runs.slots import Slots

PARAMETERS = """\
device: str = "cpu"       # where
lam: float = 0.1          # rank weight
steps: int = 20           # steps
seeds: list = [0, 1]      # seeds
"""


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    write_notebook(tmp_path / "notebooks" / "03_vit.ipynb", "1", parameters=PARAMETERS)
    monkeypatch.setattr(priced, "TABLE", tmp_path / "prices.json")
    (tmp_path / "prices.json").write_text('{"profiles": {}}')
    return tmp_path


def was_run(home, params: dict, name="03_vit", profile="lab", about=None, **facts):
    folder = home / "runs" / profile / name
    folder.mkdir(parents=True)
    known = {"device": "cpu", "lam": 0.1, "steps": 20, "seeds": [0, 1]}
    run = {"notebook": "03_vit", "params": known | params, "seconds": 90.0, "peak_memory_mb": 500, "gpu": None}
    (folder / "run.json").write_text(json.dumps(run | facts))
    if about:
        (folder / "result.json").write_text(json.dumps({"about": about}))


def price(home, **overrides) -> Price:
    (run,) = priced.priced(plan.runs(home, "lab", ["03"], overrides), home)
    return run.price


def test_nothing_is_made_up(home):
    assert price(home) == Price(None, None, None, "unknown")


def test_a_run_that_was_the_same_is_the_price(home):
    was_run(home, {"lam": 0.2}, "03_vit.lam=0.2", seconds=30.0)
    assert price(home) == Price(0.5, 500, None, "measured with other lam")
    was_run(home, {})
    assert price(home) == Price(1.5, 500, None, "measured")
    assert price(home, lam=0.3, seeds=[4, 5]).source == "measured with other lam, seeds"


@pytest.mark.parametrize("params", [{"steps": 500}, {"seeds": [0]}, {"lam": 0.2, "steps": 21}, {"more": 1}])
def test_a_run_that_may_cost_something_else_is_none(home, params):
    was_run(home, params)
    assert price(home) == Price()


def test_a_gpu_run_is_priced_by_gpu_runs_alone(home):
    was_run(home, {"device": "cuda"}, seconds=600.0)  # it had none
    assert price(home, device="cuda") == Price()
    was_run(home, {"device": "cuda"}, "03_vit.x", about={"device": "cuda:0", "peak_memory_mb": 3072}, gpu="0")
    assert price(home, device="cuda") == Price(1.5, 500, 3.0, "measured")


def test_the_table_stands_in_where_nothing_was_run_here(home):
    table = {"lab": {"03_vit": {"minutes": 4, "memory_mb": 700}}, "smoke": {"03_vit": {"minutes": 1}}}
    (home / "prices.json").write_text(json.dumps({"profiles": table}))
    (home / "params").mkdir()
    (home / "params" / "03_vit.lab.yaml").write_text("# why\nsteps: 100\n")
    assert price(home) == Price(4, 700, None, "table")
    assert price(home, lam=1.0) == Price(4, 700, None, "table with other lam")
    assert price(home, steps=20) == Price(1, None, None, "table")  # the defaults
    assert price(home, steps=30) == Price()
    was_run(home, {"steps": 100}, profile="alien")  # of another profile, and measured
    assert price(home) == Price(1.5, 500, None, "measured")
    was_run(home, {"steps": 100}, seconds=120.0)  # of this one
    assert price(home).minutes == 2.0


def test_what_cannot_be_read_is_passed_over(home):
    for name, text in (("a", "{"), ("b", "[]"), ("c", "{}")):
        (home / "runs" / "lab" / name).mkdir(parents=True)
        (home / "runs" / "lab" / name / "run.json").write_text(text)
    assert price(home) == Price()


def test_the_committed_table_is_of_this_repository():
    root = Path(__file__).resolve().parents[2]
    table = json.loads(priced.TABLE.read_text())["profiles"]
    known = plan.notebooks(root)
    for profile, notebooks in table.items():
        plan.check_profile(root, profile)
        assert notebooks.keys() <= known.keys()
        assert all(Price(**each, source="table").minutes > 0 for each in notebooks.values())


def one(name: str, minutes, needs=(), last=False) -> Run:
    return Run(name, Path(f"{name}.ipynb"), "lab", {}, needs, last=last, price=Price(minutes, 10))


def slots(width: int) -> Slots:
    return Slots(width, 64, 10**6, [])


@pytest.mark.parametrize(
    "runs, width, minutes",
    [
        ([one("a", 10), one("b", 20), one("c", 30)], 1, 60),
        ([one("a", 10), one("b", 20), one("c", 30)], 2, 40),
        ([one("a", 10), one("b", 20), one("c", 30)], 9, 30),
        ([one("a", 10), one("b", 20, ("a",)), one("c", 5)], 2, 30),
        ([one("z", 7, last=True), one("a", 10), one("b", 20)], 9, 27),
        ([one("b", 20, ("a",))], 2, 20),  # what it needs is stored
        ([one("a", None), one("b", 3)], 1, 3),
    ],
)
def test_the_wall_time_is_that_of_the_pools_order(runs, width, minutes):
    assert priced.minutes(runs, slots(width)) == minutes


@pytest.mark.parametrize(
    "runs, stored, width, line",
    [
        ([one("a", 10), one("b", 24.6), one("c", None)], (), 2, "3 runs, about 25 minutes two at a time, 1 not priced"),
        ([one("a", 10), one("b", 20)], ("a",), 2, "1 of 2 runs to do, about 20 minutes"),
        ([one("a", 0.2)], (), 2, "1 run, less than a minute"),
        ([one("a", None)] * 2, (), 2, "2 runs, not priced"),
        (
            [one("a", 3), one("b", None), one("c", None)],
            (),
            2,
            "3 runs, 2 not priced, the others about 3 minutes two at a time",
        ),
        ([one(str(n), 60) for n in range(12)], (), 12, "12 runs, about 60 minutes 12 at a time"),
        ([one("a", 150), one("b", 150)], (), 1, "2 runs, about 5.0 hours one at a time"),
    ],
)
def test_the_total_is_one_line(runs, stored, width, line):
    assert priced.total(runs, stored, slots(width)) == line


def test_a_run_says_its_total_before_it_starts(home, capsys, monkeypatch):
    was_run(home, {"lam": 9.0})
    monkeypatch.setattr("prehab_lib.runs.pool.Pool.work", lambda self: print("work") or {})
    assert __main__.main(["run", "lab", "--grid", "lam=[1, 2, 3]", "-j", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("plan      3 runs, about 4 minutes one at a time") < lines.index("work")
