"""The forecast of `plan paper` beside real runs of notebook 11, and the targets of the paper's runs."""

import json
from collections import Counter

import torch

from prehab_lib import weightings
from prehab_lib.report import forecast
from prehab_lib.runs import plan
from prehab_lib.scale.preflight import sizes_of

TINY = dict(base={"steps": 2}, steps=3, calibration=4, few=16, scored=6, searched=2, baselines=["svd", "asvd", "fwsvd"])
TINY |= dict(methods=["svd_llm"], lora=dict(rank=2, steps=2, lr=0.1, accumulate=3), scale=[0.5])
TINY["repaired"] = dict(arms=["few-stable"], methods=["svd_llm"], at=[0.4])


def test_real_runs_of_the_notebook_do_what_the_table_says(tmp_path, monkeypatch):
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
    for arm, least in (("untouched", 300), ("few-stable", 40)):
        book = {"__name__": "book"}
        with torch.nn.modules.module.register_module_forward_hook(passed):
            for source in ("".join(cell["source"]) for cell in cells):
                if "STAGES = Stages()" in source:  # the base model is there
                    done.clear()
                exec("" if any(word in source for word in ("plots.", "pulls", "forward", "rates")) else source, book)
                book |= TINY | {"arm": arm} if source.startswith("arm: str") else {}
        told = sum((stage[1] for stage in forecast.one_arm(book["P"], sizes_of(book["network"].to("meta")))), Counter())
        assert done["passes"] > least and all(done[name] == told[name] for name in forecast.COUNTS), (arm, done, told)


def test_the_paper_meets_its_targets_but_for_what_is_listed():
    """Hours of a stage above 3, GB of the GPU above 130: these lists may only shrink."""
    printed = forecast.table(plan.runs(plan.home(), "paper"))
    lines = [line.rstrip("! ").rsplit(maxsplit=7) for line in printed.split("\nrun ")[0].splitlines()[1:-1]]
    hours, gpu, host = ({" ".join(line[0].split()): float(line[place]) for line in lines} for place in (5, 6, 7))
    long = {f"04_bert_glue.task={task},lr=2e-05 trained" for task in ("qqp", "mnli")}
    assert {stage for stage in hours if hours[stage] > 3} == long | {"11_one_arm.few-eq5 prehab"} and len(hours) == 57
    assert {stage.split()[1].strip(":,") for stage in gpu if gpu[stage] > 130} == {"prehab", "cut", "search", "LoRA"}
    assert 15 < sum(hours[stage] for stage in hours if "11_one_arm" in stage) <= 24 and max(host.values()) <= 100
    assert printed.count("does not fit on one GPU of 141 GB") == 4 and "an H200's, assumed, not measured" in printed
    assert "several (FSDP2) hold, in GB: all seeds together" in printed and len(forecast.measured("cpu", 64)) == 3
