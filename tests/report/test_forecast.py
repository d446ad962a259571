"""The forecast of `plan paper`: operations by hand, counts beside a real run, targets of the paper's runs."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prehab_lib import weightings
from prehab_lib.report import forecast
from prehab_lib.runs import plan
from prehab_lib.scale.preflight import sizes_of
from prehab_lib.tasks import parameters
from prehab_lib.tasks.small_llama import small_llama

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "11_one_arm.ipynb"
TINY = dict(base={"steps": 2}, window=32, batch=2, steps=3, calibration=4, few=4, scored=6, searched=2, scale=[0.5])
TINY |= dict(methods=["svd_llm"], removed=[0.2, 0.4], lora={"rank": 2, "steps": 2, "lr": 1e-3, "accumulate": 3})
TINY |= dict(repaired=dict(arms=["few-stable"], methods=["svd_llm"], at=[0.4]), rehab_on={"batch": 1})
TINY["baselines"] = ["svd", "asvd", "fwsvd"]


def test_a_pass_and_a_step_are_those_of_a_hand_count():
    s, tokens = sizes_of(small_llama(1000, depth=2).to("meta")), 48
    block = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160  # q and o, k and v, the gated layers
    forward = 2 * tokens * (2 * block + 1000 * 64) + 2 * 4 * tokens * tokens * 64  # and attention
    assert forecast.forward(s.model, tokens) == forward and s.compressed == 2 * block
    half = dict(passes=6, single=15 * (2 * forward - 2 * tokens * block))
    assert forecast.passes(s, 3, 5, tokens, at=[0.5, 0.0]) == half
    step = forecast.passes(s, 1, 1, tokens, free=s.compressed, steps=1, again=1)  # the head has no gradient
    assert step == dict(passes=1, backward=1, steps=1, single=4 * forward - 2 * tokens * 1000 * 64)
    sides = 2 * ([(64, 64)] * 2 + [(32, 64)] * 2 + [(64, 160)] * 3)
    assert forecast.factorised(s, 3)["solved"] == 3 * sum(9 * k**3 + 2 * k * k * q for k, q in sides)


def done_by_the_notebook(arm, folder, monkeypatch):
    """Counts of what its own cells do from the base model on, without the figures."""
    monkeypatch.setenv("PREHAB_CACHE", str(folder))
    done, names, on = Counter(), {"__name__": "notebook"}, []

    def passed(module, args, out):
        if on and type(module).__name__.endswith("ForCausalLM"):
            done.update(passes=1, backward=int(torch.is_grad_enabled()))

    def counting(name, function):
        return lambda *args, **how: done.update({name: len(on)}) or function(*args, **how)

    monkeypatch.setattr(torch.optim.AdamW, "step", counting("steps", torch.optim.AdamW.step))
    monkeypatch.setattr(weightings, "decompose", counting("factorised", weightings.decompose))
    with torch.nn.modules.module.register_module_forward_hook(passed):
        for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and "plots." not in source and "pulls" not in source:
                on += [1] if "STAGES = Stages()" in source else []
                exec(source, names)
                names |= TINY | {"arm": arm} if "parameters" in cell["metadata"].get("tags", []) else {}
            if "in by_ruler.items()" in source:
                return done


@pytest.mark.filterwarnings("ignore:.*tokens per input channel")
@pytest.mark.parametrize(("arm", "factorised"), [("untouched", 4 * 21), ("few-stable", 21)])
def test_a_real_run_of_the_notebook_does_what_the_table_says(arm, factorised, tmp_path, monkeypatch):
    done = done_by_the_notebook(arm, tmp_path, monkeypatch)
    usual = {name: default for name, (_, default) in parameters.read(NOTEBOOK).items()}
    stages = forecast.one_arm(
        SimpleNamespace(**usual | TINY | {"arm": arm}), sizes_of(small_llama(1000).to("meta"), 1000)
    )
    told = sum((work for _, work, *_ in stages), Counter())
    assert done["factorised"] == factorised and all(done[name] == told[name] for name in forecast.COUNTS)


# What misses a target today: hours of a stage above 3, GB of the GPU above 130. These lists may only shrink.
LONG = {("11_one_arm.few-eq5", "prehab")}
LONG |= {(f"04_bert_glue.task={task},lr=2e-05", "trained") for task in ("qnli", "qqp", "mnli")}
LINE = re.compile(r" *(\S+) +(\w.*?)" + 4 * r" +(\d+)" + 3 * r" +([\d.]+)" + " *(!?) *")


def test_the_paper_meets_its_targets_but_for_what_is_listed():
    printed = forecast.table(plan.runs(ROOT, "paper")).splitlines()
    rows = [found.groups() for found in map(LINE.fullmatch, printed) if found]
    assert len(rows) == 2 * 3 + 8 * 2 + 14 + 8 + 8 + 5  # stages of 03, 04 and the four arms
    assert {(run, stage) for run, stage, *_, hours, _, _, _ in rows if float(hours) > 3} == LONG
    assert 15 < sum(float(row[6]) for row in rows if row[0].startswith("11_one_arm")) <= 24
    assert max(float(row[8]) for row in rows) <= 100 and all(row[9] == "!" for row in rows if float(row[7]) > 141)
    assert {row[1].split(":")[0] for row in rows if float(row[7]) > 130} == {"prehab", "cut, scored", "search", "LoRA"}
    rates, *too_large, holds, several = printed[-7:]
    assert len(too_large) == 4 and "an H200's, assumed, not measured: low 3.5e+14, single 4.0e+13" in rates
    assert "few-eq5 does not fit on one GPU of 141 GB: prehab 164" in too_large[-1]
    assert "surgery of huggyllama" in holds and "several (FSDP2) hold, in GB: prehab of huggyllama" in several
    assert set(forecast.measured("cpu", 64)) == set(forecast.KNOWN["rates"])


def test_a_model_that_is_not_known_is_one_line_and_the_table_goes_on(tmp_path):
    runs = plan.runs(ROOT, "paper", ["11"], {"checkpoint": str(tmp_path)}) + plan.runs(ROOT, "paper", ["03", "10"])
    said = forecast.table(runs)
    assert said.count("no forecast, model, data or arm are not known: ") == said.count("has no config.json") == 4
    assert "03_vit.reduction=sum,lam=0.1" in said and "none of these runs" in forecast.table(runs[-1:])


def test_other_profiles_are_planned_without_torch():
    code = "import sys; from prehab_lib import __main__ as m; m.main(['plan', 'laptop']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "passes" not in done.stdout
