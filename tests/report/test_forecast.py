"""The forecast of `plan paper` beside real runs of notebook 11, and the targets of the paper's runs."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from prehab_lib import weightings
from prehab_lib.report import forecast
from prehab_lib.report.forecast import COUNTS
from prehab_lib.runs import plan
from prehab_lib.scale.preflight import sizes_of
from tests.tasks.helpers import refuses

TINY = dict(base={"steps": 2}, steps=3, calibration=4, few=16, scored=6, searched=2, scale=[0.5])
TINY |= dict(methods=["svd_llm"], baselines=["svd", "asvd", "fwsvd"], large={"roots_on": "cpu"})
TINY["lora"] = dict(rank=2, steps=2, lr=0.1, accumulate=3)
TINY["repaired"] = dict(arms=["few-stable"], methods=["svd_llm"], at=[0.4])


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """arm -> (what its run did, what the table says): passes, backward, steps, factorised."""
    notebook, done = plan.home() / "notebooks" / "11_one_arm.ipynb", Counter()
    cells = [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]

    def counting(name, function):
        return lambda *args, **how: done.update([name]) or function(*args, **how)

    def passed(module, args, out):
        if type(module).__name__.endswith("ForCausalLM"):
            done.update(["passes", *["backward"] * torch.is_grad_enabled()])

    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.optim.AdamW, "step", counting("steps", torch.optim.AdamW.step))
    monkeypatch.setattr(weightings, "decompose", counting("factorised", weightings.decompose))

    def run(arm, **more):
        book = {"__name__": "book"}
        monkeypatch.setenv("PREHAB_STAGES", str(tmp_path / arm))
        with torch.nn.modules.module.register_module_forward_hook(passed):
            for source in ("".join(cell["source"]) for cell in cells):
                if "STAGES = Stages()" in source:  # the base model is there
                    done.clear()
                exec("" if any(word in source for word in ("plots.", "pulls", "forward", "rates")) else source, book)
                book |= TINY | {"arm": arm} | more if source.startswith("arm: str") else {}
        if book["P"].glue:
            return book["lost"]
        stages = [*forecast.one_arm(book["P"], sizes_of(book["network"].to("meta")))]
        return [done[name] for name in COUNTS], [[work[name] for name in COUNTS] for _, work, *_ in stages]

    return run


def test_real_runs_do_what_the_table_says(ran):
    for arm, least in (("untouched", 300), ("few-stable", 40)):
        did, told = ran(arm)
        assert did[0] > least and did == [*map(sum, zip(*told, strict=True))], (arm, did, told)


def test_a_task_of_glue_begins_at_nothing_lost(ran):
    """The divergence of an untouched model from itself is 0, which has no logarithm."""
    lost = ran("untouched", glue="acceptability")
    nats = lost[lost.metric == "kl"].set_index("removed").nats
    assert abs(nats[0.0]).max() == 0 < nats[0.4].min()


def test_a_killed_run_goes_on_at_the_stage_that_was_cut_off(ran, tmp_path):
    """What it then takes is what the table says of that stage; one that was whole takes nothing."""
    ran("few-stable")
    assert ran("few-stable")[0] == [0, 0, 0, 0]
    (tmp_path / "few-stable" / "uncut.json").unlink()
    did, told = ran("few-stable")
    assert did == told[2] and did[0] > 0 == did[1]
    (tmp_path / "few-stable" / "svd_llm at 0.4.json").unlink()  # one of three fractions
    did, told = ran("few-stable")
    measured, cut, lora = told[3:]  # the statistics of its ruler are taken anew
    assert did[1:] == [a + c for a, c in zip(measured[1:], lora[1:], strict=True)]
    assert did[0] < measured[0] + cut[0] + lora[0]


def test_the_paper_meets_its_targets(monkeypatch):
    runs = plan.runs(plan.home(), "paper")
    printed = forecast.table(runs)
    lines = [line.rstrip("! ").rsplit(maxsplit=7) for line in printed.split("\nrun ")[0].splitlines()[1:-1]]
    hours, gpu, host = ({" ".join(line[0].split()): float(line[place]) for line in lines} for place in (5, 6, 7))
    assert max(hours.values()) <= 3 and max(gpu.values()) <= 130 and max(host.values()) <= 100 and len(hours) == 68
    assert 10 < sum(hours[stage] for stage in hours if "11_one_arm" in stage) <= 24
    assert "does not fit" not in printed and "an H200's, assumed, not measured" in printed
    assert "several (FSDP2) hold, in GB: all seeds together" in printed and len(forecast.measured("cpu", 64)) == 3
    (run,) = [SimpleNamespace(**run.params) for run in runs if run.params.get("arm") == "few-stable"]
    for free, stage in (
        ({"cpu": 90, "cuda": 100}, "prehab needs about 111.6 GiB of cuda"),
        ({"cpu": 84, "cuda": 200}, "prehab needs about 85.5 GiB of cpu"),
    ):
        monkeypatch.setattr(forecast, "available_gib", free.get)
        refuses(stage, forecast.refuse, run, "cuda")
